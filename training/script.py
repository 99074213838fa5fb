"""How a training script ends: one line on standard error and an exit code, whatever stops it."""

import sys
from collections.abc import Callable
from pathlib import Path

from training import distributed
from training.loop import DivergenceError, Terminated
from training.settings import one_line
from training.state import STATE_FILE


def exit_code(name: str, run: Callable[[], object], output: Path | None = None) -> int:
    """0 when `run` ends by itself, 130 after Ctrl-C, 143 after SIGTERM, 1 for what cannot be trained on or saved.

    `output`: the folder of a run that can be resumed. What nobody foresaw is raised: its traceback is what there is to
    go by.
    """
    try:
        run()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted{'' if output is None else _saved(output / 'last')}", file=sys.stderr)
        return 130
    except Terminated as reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return 143
    except (ValueError, OSError, DivergenceError) as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        distributed.shutdown()
    return 0


def _saved(last: Path) -> str:
    saved = (last / STATE_FILE).exists()
    return f"; {last} has " + ("the last saved state: run it again to resume" if saved else "no saved state yet")
