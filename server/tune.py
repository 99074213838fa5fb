"""Find the instances, threads, batch size and batching delay that serve most on this machine, and write them into the
configs.

    python -m server.tune --model-repository model_repository [--callers 8] [--p99-ms 500] [--dry-run]

One setting after the other is tried on a copy of the repository, each with a server of its own under a closed loop of
callers. The best is then compared with the current ones, in alternating turns, and written if it still answers more
images a second by more than the noise. Run it after each build, on an idle machine.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from server.canary import canary_png
from server.closed_loop import closed_loop
from server.command_line import (
    LIBRARY,
    add_repository_option,
    add_seconds_option,
    interrupt_on_signals,
    positive,
    stopped_code,
    uninterrupted,
)
from server.cores import usable_cores
from server.errors import ServerError, exit_code
from server.locate import find_tritonserver
from server.private_folder import PrivateFolder
from server.repository import PREPROCESS, read_repository
from server.supervisor import TritonServer
from server.tuned_settings import (
    Settings,
    check_writable,
    largest_batch,
    read_settings,
    write_settings,
)
from server.versions import Versions

LEAST_GAIN = 1.03  # in images a second: smaller differences are noise
TURNS = 3  # of the final comparison: among a dozen settings tried once, one is best by chance


@dataclass(frozen=True)
class Score:
    images_per_s: float
    p99_ms: float

    def __str__(self) -> str:
        return f"{self.images_per_s:8.1f} images/s, p99 {self.p99_ms:6.0f} ms"


def candidates(cores: int, largest: int, embedded: bool) -> Iterator[Callable[[Settings], list[Settings]]]:
    """Yield functions, one for each tuned setting, that return alternatives to the best settings so far."""

    def shared(best: Settings, count: int) -> Settings:
        lone = cores if embedded and count > 1 else 0
        return replace(best, backbone_instances=count, backbone_threads=cores // count, lone_threads=lone)

    yield lambda best: [shared(best, count) for count in sorted({1, 2, cores}) if count <= cores]
    yield lambda best: [replace(best, preprocess_instances=count) for count in sorted({1, 2, cores, 2 * cores})]
    yield lambda best: [replace(best, delay_us=delay) for delay in (0, 1_000, 5_000)]
    yield lambda best: [replace(best, max_batch_size=size) for size in sorted({4, 8, largest}) if size <= largest]


def measure(
    repository: Path,
    settings: Settings,
    embedded: bool,
    image: bytes,
    callers: int,
    seconds: float,
    library: str | None = None,
    start_timeout: float = 120.0,
) -> Score:
    """Start a server with these settings and measure a closed loop of `callers` for `seconds`."""
    with copied(repository) as copy:
        write_settings(copy, settings, embedded)
        with TritonServer(  # each trial would repeat the server's own warnings
            copy, library=library, start_timeout=start_timeout, on_event=lambda _: None
        ) as server:
            closed_loop(server.grpc_url, image, callers, seconds / 4)  # warm-up
            begun = time.perf_counter()
            taken = closed_loop(server.grpc_url, image, callers, seconds)
            passed = time.perf_counter() - begun
    return Score(len(taken) / passed, statistics.quantiles(taken, n=100, method="inclusive")[98] * 1e3)


@contextmanager
def copied(repository: Path) -> Iterator[Path]:
    """Copy the repository into a temporary folder, with links to the weights."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".pbtxt"):
            shutil.copy2(source, target)
        else:
            Path(target).symlink_to(Path(source).resolve())

    with PrivateFolder(tempfile.gettempdir(), "widefield-tune-", "models") as folder:
        target = folder / "models"
        shutil.copytree(repository, target, copy_function=copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        yield target


def tune(
    now: Settings,
    cores: int,
    largest: int,
    score: Callable[[Settings], Score],
    p99_ms: float | None,
    say: Callable[[str], None],
    embedded: bool = True,
) -> tuple[Settings, Score, Score]:
    """Return the best settings, and the scores of the best candidate and of `now` (medians if these differ).

    Better means more images a second, with a p99 of at most `p99_ms` if it is given. `largest`: the largest batch to
    try.
    """

    def value(found: Score) -> float:
        return found.images_per_s if p99_ms is None or found.p99_ms <= p99_ms else found.images_per_s / 1e6

    known: dict[Settings, Score] = {}

    def measured(settings: Settings) -> Score:
        found = score(settings)
        say(f"{found}: {settings}")
        return found

    def tried(settings: Settings) -> Score:
        if settings not in known:
            known[settings] = measured(settings)
        return known[settings]

    best, begun = now, time.perf_counter()
    tried(best)
    steps = list(candidates(cores, largest, embedded))
    left = len({settings for step in steps for settings in step(now)} - {now}) + 2 * TURNS
    say(f"at most {left} more such measurements, about {left * (time.perf_counter() - begun) / 60:.1f} minutes")
    for step in steps:
        for settings in step(best):
            if value(tried(settings)) > LEAST_GAIN * value(known[best]):
                best = settings
    if best == now:
        return now, known[now], known[now]
    say("the best of these and the current settings, in turns:")
    turns = [(measured(best), measured(now)) for _ in range(TURNS)]
    found, before = (median(scores) for scores in zip(*turns, strict=True))
    say(f"{found}: its median\n{before}: the median of the current settings")
    gains = all(value(one) > LEAST_GAIN * value(other) for one, other in turns)
    return best if gains else now, found, before


def median(scores: Sequence[Score]) -> Score:
    return Score(*(statistics.median(values) for values in zip(*map(astuple, scores), strict=True)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_repository_option(parser)
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to send (default: the repository's own)")
    parser.add_argument(
        "--callers", type=int, default=8, metavar="N", help="callers that send at the same time (default: 8)"
    )
    add_seconds_option(parser, "--seconds", 6.0, "duration of each measurement")
    parser.add_argument(
        "--p99-ms",
        type=positive,
        metavar="MS",
        help="prefer settings whose 99th percentile of the latency stays below this (default: no limit)",
    )
    parser.add_argument("--library", metavar="FILE", help=LIBRARY)
    add_seconds_option(parser, "--start-timeout", 120.0, "time limit for the start of each server")
    parser.add_argument("--dry-run", action="store_true", help="measure, but do not change the configs")
    options = parser.parse_args(arguments)
    if options.callers < 1:
        parser.error("--callers is at least 1")
    try:
        image = options.image and options.image.read_bytes()
    except OSError as error:
        parser.error(
            f"--image {options.image} cannot be read ({error.strerror}): name a picture's file, or leave it out"
        )
    repository = options.model_repository
    interrupt_on_signals()
    try:
        read_repository(repository)
        if not options.dry_run:
            check_writable(repository)
        embedded = find_tritonserver().embedded
        image = own_image(repository) if image is None else image
        now = read_settings(repository, embedded)
        load = (options.callers, options.seconds, options.library, options.start_timeout)
        best, found, before = tune(
            now,
            usable_cores(),
            largest_batch(repository, embedded),
            lambda settings: measure(repository, settings, embedded, image, *load),
            options.p99_ms,
            lambda line: print(line, flush=True),
            embedded,
        )
        if best != now and not options.dry_run:
            with uninterrupted(), Versions(repository).locked():  # a release in between would load half of them
                write_settings(repository, best, embedded)
    except (ServerError, OSError) as error:
        print(f"server.tune: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt as stop:
        print("server.tune: stopped, nothing was written", file=sys.stderr)
        return stopped_code(stop)
    if best == now:
        print(f"nothing serves more than the current settings: {now}")
        return 0
    done, change = "would write" if options.dry_run else "wrote", found.images_per_s / before.images_per_s
    print(f"{done} {best}: {change:.2f} times as many images a second as before")
    if not options.dry_run:
        print("a server that runs on this repository must be restarted")
    return 0


def own_image(repository: Path) -> bytes:
    """Return the image that preprocess is warmed up with, else the canary."""
    warmup = repository / PREPROCESS / "warmup" / "image"
    return warmup.read_bytes()[4:] if warmup.is_file() else canary_png()


if __name__ == "__main__":
    sys.exit(main())
