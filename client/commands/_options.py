"""The options that commands share, besides those of client/options.py."""

import argparse

from client.options import not_negative, whole


def add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, folder of images, quoted pattern, - or URL")
    parser.add_argument("--allow-urls", action="store_true", help="fetch a PATH that is an http:// or https:// URL")
    parser.add_argument(
        "--top", type=whole(1), default=5, metavar="N", help="classes to return for each image (default: 5)"
    )
    parser.add_argument(
        "--concurrency", type=whole(1), default=8, metavar="N", help="requests in flight at a time (default: 8)"
    )
    parser.add_argument(
        "--wait",
        type=not_negative,
        default=60.0,
        metavar="SECONDS",
        help="time to wait for servers that went away (default: 60)",
    )


def add_format_options(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--json", dest="format", action="store_const", const="json", help="write JSON, for programs")
    kinds.add_argument("--csv", dest="format", action="store_const", const="csv", help="write CSV, for programs")
    parser.set_defaults(format="table")
