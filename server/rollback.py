"""Go back to the version that was live before, on a running server, with no request failed.

python -m server.rollback --model-repository model_repository --management-token-file token
"""

import sys

from server.management import Management
from server.release import Say, parser_of, rollback, run


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("python -m server.rollback", __doc__).parse_args(arguments)

    def action(management: Management, say: Say) -> str:
        was, now = rollback(options.model_repository, management, say)
        return f"version {now} is live, {was} was withdrawn"

    return run(options, "rollback", "rolled back", action)


if __name__ == "__main__":
    sys.exit(main())
