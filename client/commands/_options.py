"""The options that commands share, besides those of client/options.py."""

import argparse

from client.options import add_number, add_top, not_negative, whole


def add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder of images, quoted pattern, - or URL")
    parser.add_argument("--allow-urls", action="store_true", help="fetch a PATH that is an http:// or https:// URL")
    add_top(parser)
    add_concurrency(parser)
    add_number(parser, "--wait", not_negative, 60.0, "SECONDS", "time to wait for servers that went away")


def add_concurrency(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--concurrency", whole(1), 8, "N", "requests in flight at a time")


def add_format_options(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--json", dest="format", action="store_const", const="json", help="write JSON, for programs")
    kinds.add_argument("--csv", dest="format", action="store_const", const="csv", help="write CSV, for programs")
    parser.set_defaults(format="table")
