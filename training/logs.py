"""The reports of a run in progress: a progress bar, log.jsonl, TensorBoard."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from models.files import replace_file
from training.settings import LoopConfig, SettingsError

LOG_FILE = "log.jsonl"
UNWRAPPED = 10_000  # columns, more than any line has
LINE_EVERY = 30.0  # seconds between lines, if no terminal shows the bar


def standard_output() -> Console:
    """Return a console as wide as the terminal; in a file or a pipe, which programs read, no line is wrapped.

    What cannot be encoded, such as a file's name that is not UTF-8, is escaped, as on standard error.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    plain: dict[str, Any] = {"markup": False, "emoji": False}  # a path or a label is shown as it is
    return Console(**plain) if sys.stdout.isatty() else Console(width=UNWRAPPED, **plain)


def shown_progress(batches: Iterable[Any], what: str, console: Console) -> Iterable[Any]:
    """Yield the batches and, if `console` is a terminal, show how many are done."""
    return track(batches, what, console=console, transient=True, disable=not console.is_interactive)


class RunLog:
    """Progress bar on `console`, a JSON line for each epoch in `folder`/log.jsonl, scalars for TensorBoard.

    If `console` is no terminal, a line every half minute replaces the bar. Only the `main` process writes. A resumed
    log keeps the lines of its first `epochs` epochs, those that were evaluated. Raises `SettingsError` if TensorBoard
    is asked for and not installed.
    """

    def __init__(
        self, config: LoopConfig, folder: Path, console: Console, total: int, step: int, epochs: int, main: bool
    ) -> None:
        texts = (TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total} ETA"))
        columns = (texts[0], BarColumn(), texts[1], TimeRemainingColumn())  # in a narrow terminal the bar gives way
        self.live = console.is_interactive or console.is_jupyter
        self.progress = Progress(*columns, console=console, disable=not (main and self.live))
        self.bar = self.progress.add_task("starting", total=total, completed=step)
        self.console, self.main, self.epochs = console, main, config.epochs
        self.total, self.first, self.begun = total, step, time.perf_counter()
        self.lines = 0  # printed, or due, if no terminal shows the bar
        self.path = folder / LOG_FILE
        self.writer = tensorboard_writer(config.output / "tensorboard", step) if config.tensorboard and main else None
        if main:
            kept = self.path.read_text().splitlines()[:epochs] if self.path.exists() else []
            text = "".join(f"{line}\n" for line in kept)
            replace_file(self.path, lambda path: path.write_text(text))
        self.start_epoch()

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.progress.stop()
        if self.writer:
            self.writer.close()

    def start_epoch(self) -> None:
        self.started, self.seen, self.speed = time.perf_counter(), 0, 0.0
        self.waited, self.waiting = 0.0, 0.0  # for images: seconds, and their share of the epoch's steps

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches, and note the time for which the training waits for them."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def step(self, epoch: int, step: int, images: int, values: dict[str, float]) -> None:
        """Report an optimiser step. `images`: their number in this step, over all processes."""
        self.seen += images
        now = time.perf_counter()
        self.speed = self.seen / (now - self.started)
        self.waiting = self.waited / (now - self.started)
        place = f"epoch {epoch + 1}/{self.epochs}"
        shown = f"loss {values['loss']:.4f}  lr {values['lr']:.1e}  {self.speed:.0f} images/s"
        self.progress.update(self.bar, completed=step, description=f"{place}  {shown}")
        if self.main and not self.live and now - self.begun > LINE_EVERY * (self.lines + 1):
            self.lines = int((now - self.begun) / LINE_EVERY)
            left = timedelta(seconds=round((now - self.begun) / (step - self.first) * (self.total - step)))
            waited = f"waited {self.waiting:.0%}"
            self.console.print(f"{place}  step {step}/{self.total}  {shown}  {waited}  {left} left", highlight=False)
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, step)

    def epoch(self, record: dict[str, Any], metrics: dict[str, float]) -> None:
        """Report the end of an epoch: its record, with the metrics of the evaluation."""
        if not self.main:
            return
        seconds = time.perf_counter() - self.started
        speed = {
            "images_per_second": round(self.speed, 1),
            "waiting": round(self.waiting, 3),
            "seconds": round(seconds, 3),
        }
        with self.path.open("a") as file:
            print(json.dumps({**record, **metrics, **speed}), file=file)
        if self.writer:
            for name, value in metrics.items():
                self.writer.add_scalar(f"val/{name}", value, record["step"])
        shown = "  ".join(
            f"{name.replace('top', 'top-')} {value:{'.4f' if name.endswith('loss') else '.2%'}}"
            for name, value in metrics.items()
        )
        shown += f"  waited {self.waiting:.0%}"
        self.console.print(f"epoch {record['epoch']:3d}  loss {record['loss']:.4f}  {shown}", highlight=False)


def tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SettingsError(f"--tensorboard needs a package ({error}): pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
