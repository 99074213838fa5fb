"""Go back to the version that was live before, on a running server, with no request failed.

python -m server.rollback --model-repository model_repository --management-token-file token
"""

import sys
from pathlib import Path

from server.errors import ReleaseError
from server.management import Management
from server.release import Say, check_live, parser_of, run, switch
from server.repository import verify
from server.versions import Versions


def rollback(repository: Path, management: Management, say: Say) -> tuple[int, int]:
    """Go back to the previous version; return the numbers of the old and the new live version. Raises `ServerError`."""
    with Versions(repository).locked() as versions:
        live = check_live(versions, management)
        before = [number for number in versions.numbers() if number < live]
        if not before:
            raise ReleaseError(f"{versions.model} holds no version before {live}: there is nothing to go back to")
        verify(versions.folder(before[-1]))
        switch(management, before[-1], live, lambda: versions.withdraw(live), lambda: versions.bring_back(live), say)
    return live, before[-1]


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("python -m server.rollback", __doc__).parse_args(arguments)

    def action(management: Management, say: Say) -> str:
        was, now = rollback(options.model_repository, management, say)
        return f"version {now} is live, {was} was withdrawn"

    return run(options, "rollback", "rolled back", action)


if __name__ == "__main__":
    sys.exit(main())
