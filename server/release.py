"""Make newly built weights live on a running server, with no request failed; python -m server.rollback goes back.

    python build_models.py --weights runs/new --output built
    python -m server.release built --model-repository model_repository --management-token-file token

The new version is compared with its checksums and with what is served, then tried on a separate server. Only then is it
copied into the served repository as the backbone's next version and loaded. If that fails, the previous one stays live.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from server.canary import CanaryBusyError, CanaryError, classify_canary
from server.checksums import VERSION, newest_version
from server.command_line import (
    LIBRARY,
    add_repository_option,
    add_seconds_option,
    add_token_options,
    interrupt_on_signals,
    stopped_code,
)
from server.compatibility import check_compatible, check_running
from server.errors import OptionError, ReleaseError, ServerError, exit_code
from server.management import HOW_TO_GIVE_IT, Management, read_token
from server.private_folder import PrivateFolder
from server.repository import BACKBONE, ENSEMBLE, read_repository, verify
from server.supervisor import TritonServer
from server.versions import KEPT, Versions

BUSY_SECONDS = 30.0  # how long to retry a busy server
AGAIN_SECONDS = 120.0  # how long to wait for a server that ended
Say = Callable[[str], None]


def release(built: Path, repository: Path, management: Management, library: str | None, say: Say) -> int:
    """Make `built` live and return its version. Raises `ServerError`; the previous version then stays live."""
    if built.resolve() == repository.resolve():
        raise ReleaseError(f"{built} is the served repository: build into a folder of its own (--output)")
    read_repository(built, suggest_removal=False)  # checks that it is complete and unchanged
    check_compatible(built, repository)
    new = Versions(built)
    source = new.folder(new.numbers()[-1])
    if not (source / "build.json").is_file():
        raise ReleaseError(
            f"{source} has no build.json, so no checksums to compare it with: build it with build_models.py"
        )
    with Versions(repository).locked() as versions:
        before = check_live(versions, management)
        number = versions.unused_number()
        with versions.incoming(source) as incoming:
            verify(incoming, suggest_removal=False)  # the copy too
            say(f"proving version {number} ({source}) on a server of its own")
            with (
                staged(repository, incoming, number) as stage,
                TritonServer(stage, library=library, start_timeout=management.timeout) as candidate,
            ):
                check_answers(candidate.http_url)
            folder = versions.folder(number)

            def undo() -> None:
                versions.withdraw(number, keep=incoming.exists())  # if so, the number is another build's

            switch(management, number, before, lambda: incoming.rename(folder), undo, say)
        try:
            versions.remove_all_but(KEPT)
        except OSError as error:
            say(f"version {number} is live; an old one could not be removed ({error})")
    return number


def switch(
    management: Management, wanted: int, before: int, change: Callable[[], object], undo: Callable[[], object], say: Say
) -> None:
    """Call `change`, which makes `wanted` the newest version, and load it. On any failure call `undo` and restore."""
    try:
        change()
        with ThreadPoolExecutor(1) as pool:  # waits even after Ctrl-C, since tritonserver continues a load
            pool.submit(management.load, BACKBONE).result()
        if management.ready_versions(BACKBONE) != [wanted]:
            raise ReleaseError(
                f"the server at {management.address} has not taken version {wanted}: does it serve this repository?"
            )
        check_answers(management.address)
    except BaseException as error:
        undo()
        state = restore(management, before, say)
        if isinstance(error, ServerError | OSError):
            raise ReleaseError(f"{error}; {state}") from error
        raise


def restore(management: Management, version: int, say: Say) -> str:
    """Wait until the server, which may be restarting, answers with `version`. Return the outcome in words."""
    deadline, waiting = time.monotonic() + AGAIN_SECONDS, False
    while True:
        try:
            management.load(BACKBONE)  # even if it is live: this waits for a load that was abandoned
            check_answers(management.address)
            return f"version {version} is live"
        except ServerError as error:
            if time.monotonic() > deadline:
                return f"version {version} is in place again, but is not served: {error}"
            if not waiting:
                say(
                    f"waiting {AGAIN_SECONDS:g} s at most for the server to serve version {version} ({error}); "
                    f"Ctrl-C leaves version {version} in place"
                )
                waiting = True
        time.sleep(0.5)


def listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


def state_of(repository: Path, management: Management) -> str:
    """Describe the live version, or, if the server does not answer, the version that it will serve."""
    try:
        return f"version {listed(management.ready_versions(BACKBONE))} is live"
    except (ServerError, KeyboardInterrupt) as error:
        newest = newest_version(repository / BACKBONE)
        number = newest.name if newest else "none"
        why = error if isinstance(error, ServerError) else "what the server serves was not asked"
        return f"version {number} is in place; {why}"


def check_live(versions: Versions, management: Management) -> int:
    """Return the live version. Raises `ReleaseError` unless it is the newest in the folder."""
    live, newest = management.ready_versions(BACKBONE), versions.numbers()[-1]
    if live != [newest]:
        raise ReleaseError(
            f"the server at {management.address} serves version {listed(live)} of {BACKBONE} "
            f"and the newest in {versions.model} is {newest}: name the repository that it serves; if that was "
            "rebuilt since the server started, restart it"
        )
    check_running(versions.model.parent, management.config)
    return newest


def check_answers(address: str) -> None:
    """Raise `ReleaseError` unless the canary image gets probabilities. Retries while the server is busy."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            outputs = classify_canary(address, ENSEMBLE, BUSY_SECONDS)
            break
        except CanaryBusyError as error:
            if time.monotonic() > deadline:
                raise ReleaseError(f"the canary image got no answer: {error}") from None
            time.sleep(0.2)
        except CanaryError as error:
            raise ReleaseError(f"the canary image was not classified: {error}") from None
    for values in (output.get("data", []) for output in outputs if output["name"] == "probabilities"):
        if not all(isinstance(p, float | int) for p in values) or not abs(sum(values) - 1) <= 1e-2:
            raise ReleaseError(f"the canary image got values that are not probabilities: {str(values)[:100]}")


@contextmanager
def staged(repository: Path, incoming: Path, number: int) -> Iterator[Path]:
    """Make a repository of links to the served one, with `incoming` as the backbone's only version."""
    repository = repository.resolve()
    with PrivateFolder(tempfile.gettempdir(), "widefield-release-", BACKBONE) as stage:
        (stage / BACKBONE).mkdir()
        for each in repository.iterdir():
            if each.name != BACKBONE:
                (stage / each.name).symlink_to(each)
        for each in (repository / BACKBONE).iterdir():
            if not VERSION.fullmatch(each.name) and not each.name.startswith("."):
                (stage / BACKBONE / each.name).symlink_to(each)
        (stage / BACKBONE / str(number)).symlink_to(incoming.resolve())
        yield stage


def parser_of(program: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_repository_option(parser)
    parser.add_argument(
        "--url", default="127.0.0.1:8000", metavar="HOST:PORT", help="HTTP address of the server (default: %(default)s)"
    )
    add_seconds_option(parser, "--timeout", 300.0, "time limit for loading a version")
    add_token_options(parser, asks=True)
    return parser


def management_of(options: argparse.Namespace) -> Management:
    token = read_token(options.management_token, options.management_token_file)
    if token is None:
        raise OptionError(f"no management token: {HOW_TO_GIVE_IT}")
    return Management(options.url.removeprefix("http://").rstrip("/"), token, options.timeout)


def run(options: argparse.Namespace, name: str, done: str, action: Callable[[Management, Say], str]) -> int:
    """Run a command: print the result of `action` or the error. Return the exit code: 0, 1, 2 (wrong option), or
    `stopped_code`; the version that is live is then printed.
    """

    def say(line: str) -> None:
        print(f"server.{name}: {line}", file=sys.stderr, flush=True)

    interrupt_on_signals()
    try:
        management = management_of(options)
        try:
            said = action(management, say)
        except KeyboardInterrupt as stop:
            say(f"stopped: {state_of(options.model_repository, management)}")
            return stopped_code(stop)
    except (ServerError, OSError) as error:
        say(f"not {done}: {error}")
        return exit_code(error)
    with suppress(OSError):  # standard output is closed; the release is done
        print(said, flush=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of("python -m server.release", __doc__)
    parser.add_argument(
        "built", type=Path, metavar="BUILT", help="repository that build_models.py has written, not the served one"
    )
    parser.add_argument("--library", metavar="FILE", help=LIBRARY)
    options = parser.parse_args(arguments)

    def action(management: Management, say: Say) -> str:
        number = release(options.built, options.model_repository, management, options.library, say)
        return f"version {number} is live"

    return run(options, "release", "released", action)


if __name__ == "__main__":
    sys.exit(main())
