"""The command line of what has no options."""

import argparse


def no_options(description: str | None) -> None:
    """--help says what is done; whatever else is asked for is refused before it is."""
    layout = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=description, formatter_class=layout).parse_args()
