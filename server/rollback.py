"""Go back to the version that was live before, on a running server, with no request failed.

python -m server.rollback --model-repository model_repository --management-token-file token
"""

import sys

from server.command_line import interrupt_on_sigterm
from server.errors import ServerError
from server.release import management_of, parser_of, rollback


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("python -m server.rollback", __doc__).parse_args(arguments)
    interrupt_on_sigterm()
    try:
        was, now = rollback(options.model_repository, management_of(options))
    except (ServerError, OSError) as error:
        print(f"server.rollback: not rolled back: {error}", file=sys.stderr)
        return 1
    print(f"version {now} is live, {was} was withdrawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
