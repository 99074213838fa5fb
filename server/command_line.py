"""What the server's commands share: the token's options, and SIGTERM."""

import argparse
import signal

from server.management import MANAGEMENT_HEADER, SHARED_MEMORY_VARIABLE, VARIABLE


def add_token_options(parser: argparse.ArgumentParser) -> None:
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--management-token-file",
        metavar="FILE",
        help="its first line opens the management interfaces to the header "
        f"{MANAGEMENT_HEADER}, and rolling changes (default: ${VARIABLE}, else closed)",
    )
    token.add_argument(
        "--management-token", metavar="TOKEN", help="the same; everybody on this machine can read it here"
    )


def add_shared_memory_options(parser: argparse.ArgumentParser) -> None:
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--shared-memory-token-file",
        metavar="FILE",
        help="clients on this host that have the same send images through shared memory, which is faster "
        f"(default: ${SHARED_MEMORY_VARIABLE}, else closed)",
    )
    token.add_argument(
        "--shared-memory-token", metavar="TOKEN", help="the same; everybody on this machine can read it here"
    )


def interrupt_on_sigterm() -> None:
    """So that it ends as by Ctrl-C, and cleans up."""
    signal.signal(signal.SIGTERM, interrupt)


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
