"""Find the instances, batch size and batching delay that serve most on this machine, and write them into the configs.

    python -m server.tune --model-repository model_repository [--callers 8] [--p99-ms 500] [--dry-run]

One setting after the other is tried on a copy of the repository, each with a server of its own under a closed loop of
callers; what answers more images a second by more than the noise stays. Run it after each build, on an idle machine.
"""

import argparse
import os
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.canary import canary_png
from server.errors import ServerError
from server.repository import EMBEDDED, read_repository, replaced
from server.supervisor import TritonServer

ENSEMBLE, PREPROCESS, BACKBONE = "classifier", "preprocess", "backbone"
ENSEMBLES = (ENSEMBLE, "classifier_explained")  # the second only where it was asked for
THREADS, LONE_THREADS = "INTRA_OP_THREAD_COUNT", "LONE_THREAD_COUNT"
LEAST_GAIN = 1.03  # of images a second: smaller differences are noise


class TuneError(ServerError):
    """The repository cannot be tuned; it is as it was."""


@dataclass(frozen=True)
class Settings:
    """What is tuned. `delay_us`: how long the backbone's batcher waits for more requests."""

    preprocess_instances: int
    backbone_instances: int
    backbone_threads: int
    max_batch_size: int
    delay_us: int

    def __str__(self) -> str:
        return (
            f"preprocess x {self.preprocess_instances}, backbone x {self.backbone_instances} of "
            f"{self.backbone_threads} threads, batches up to {self.max_batch_size}, delay {self.delay_us} us"
        )


@dataclass(frozen=True)
class Score:
    images_per_s: float
    p99_ms: float


def read_config(repository: Path, model: str, file: str = "config.pbtxt") -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse((repository / model / file).read_text(), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise TuneError(f"{repository}/{model}/{file} cannot be read ({error}): run build_models.py") from error


def config_files(repository: Path, model: str) -> list[str]:
    """The model's configs, the one that the embedded server reads last."""
    return ["config.pbtxt", EMBEDDED] if (repository / model / EMBEDDED).exists() else ["config.pbtxt"]


def read_settings(repository: Path) -> Settings:
    """As the embedded server has them. Raises `TuneError` for a repository that build_models.py has not written."""
    preprocess, backbone = (
        read_config(repository, name, config_files(repository, name)[-1]) for name in (PREPROCESS, BACKBONE)
    )
    threads = backbone.parameters[THREADS].string_value
    if not threads.isdigit():
        raise TuneError(f"{repository}/{BACKBONE}/config.pbtxt has no {THREADS}: run build_models.py")
    return Settings(
        sum(group.count for group in preprocess.instance_group) or 1,
        sum(group.count for group in backbone.instance_group) or 1,
        int(threads),
        backbone.max_batch_size,
        backbone.dynamic_batching.max_queue_delay_microseconds,
    )


def write_settings(repository: Path, settings: Settings) -> None:
    """Each config is replaced in one step; no ensemble may take larger batches than its backbone."""
    changed = {}
    for name in (name for name in ENSEMBLES if (repository / name).is_dir()):
        changed[f"{name}/config.pbtxt"] = config = read_config(repository, name)
        config.max_batch_size = settings.max_batch_size
    for name, count in ((PREPROCESS, settings.preprocess_instances), (BACKBONE, settings.backbone_instances)):
        for file in config_files(repository, name):
            changed[f"{name}/{file}"] = config = read_config(repository, name, file)
            set_instances(config, count)
            if name == BACKBONE:
                set_backbone(config, settings, embedded=file == EMBEDDED)
    for file, config in changed.items():
        path = repository / file
        text = text_format.MessageToString(config)
        if file.endswith(EMBEDDED):  # written after the config that it replaces
            text = replaced((path.parents[1] / "config.pbtxt").read_bytes()) + text
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        os.replace(temporary, path)


def set_instances(config: model_config_pb2.ModelConfig, count: int) -> None:
    kind = config.instance_group[0].kind if config.instance_group else model_config_pb2.ModelInstanceGroup.KIND_CPU
    del config.instance_group[:]
    config.instance_group.add(count=count, kind=kind)


def set_backbone(config: model_config_pb2.ModelConfig, settings: Settings, embedded: bool) -> None:
    config.parameters[THREADS].string_value = str(settings.backbone_threads)
    config.dynamic_batching.max_queue_delay_microseconds = settings.delay_us
    config.max_batch_size = settings.max_batch_size
    preferred = [size for size in config.dynamic_batching.preferred_batch_size if size <= settings.max_batch_size]
    config.dynamic_batching.preferred_batch_size[:] = preferred
    if embedded and settings.backbone_instances > 1:
        config.parameters[LONE_THREADS].string_value = str(settings.backbone_instances * settings.backbone_threads)
    else:
        config.parameters.pop(LONE_THREADS, None)


def candidates(now: Settings, cores: int) -> Iterator[Callable[[Settings], list[Settings]]]:
    """One list of alternatives after the other, each made from the best of those before."""
    yield lambda best: [
        replace(best, backbone_instances=count, backbone_threads=max(1, cores // count))
        for count in sorted({1, 2, cores})
        if count <= cores
    ]
    yield lambda best: [replace(best, preprocess_instances=count) for count in sorted({1, 2, cores, 2 * cores})]
    yield lambda best: [replace(best, delay_us=delay) for delay in (0, 1_000, 5_000)]
    yield lambda best: [replace(best, max_batch_size=size) for size in (4, 8, now.max_batch_size)]


def measure(repository: Path, settings: Settings, image: bytes, callers: int, seconds: float) -> Score:
    """Images a second and the 99th percentile of a closed loop of `callers` on a server with these settings."""
    with copied(repository) as copy:
        write_settings(copy, settings)
        with TritonServer(copy, http_port=0, grpc_port=0, metrics_port=0) as server:
            closed_loop(server.grpc_url, image, callers, seconds / 4)  # warm
            begun = time.perf_counter()
            taken = closed_loop(server.grpc_url, image, callers, seconds)
            passed = time.perf_counter() - begun
    return Score(len(taken) / passed, statistics.quantiles(taken, n=100, method="inclusive")[98] * 1e3)


def closed_loop(address: str, image: bytes, callers: int, seconds: float) -> list[float]:
    """Each caller sends the next image when it has its answer; the seconds that each took."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)

    def call(_: int) -> list[float]:
        taken: list[float] = []
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while len(taken) < 2 or sum(taken) < seconds:
                begun = time.perf_counter()
                stub.ModelInfer(request, timeout=60)
                taken.append(time.perf_counter() - begun)
        return taken

    with ThreadPoolExecutor(callers) as pool:
        return [value for values in pool.map(call, range(callers)) for value in values]


@contextmanager
def copied(repository: Path) -> Iterator[Path]:
    """The repository in a folder of its own; the weights are links, the configs are not."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".pbtxt"):
            shutil.copy2(source, target)
        else:
            Path(target).symlink_to(Path(source).resolve())

    with tempfile.TemporaryDirectory(prefix="widefield-tune-") as folder:
        target = Path(folder) / "models"
        shutil.copytree(repository, target, copy_function=copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        yield target


def tune(
    now: Settings, cores: int, score: Callable[[Settings], Score], p99_ms: float | None, say: Callable[[str], None]
) -> tuple[Settings, Score, Score]:
    """The best settings, their score and that of `now`: more images a second, within `p99_ms` where one is given."""

    def value(found: Score) -> float:
        return found.images_per_s if p99_ms is None or found.p99_ms <= p99_ms else found.images_per_s / 1e6

    known: dict[Settings, Score] = {}

    def tried(settings: Settings) -> Score:
        if settings not in known:
            known[settings] = score(settings)
            say(f"{known[settings].images_per_s:8.1f} images/s, p99 {known[settings].p99_ms:6.0f} ms: {settings}")
        return known[settings]

    best = now
    tried(best)
    for alternatives in candidates(now, cores):
        for settings in alternatives(best):
            if value(tried(settings)) > LEAST_GAIN * value(known[best]):
                best = settings
    return best, known[best], known[now]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--image", type=Path, metavar="FILE", help="what is sent (default: the repository's own)")
    parser.add_argument("--callers", type=int, default=8, help="that wait for their answers at the same time")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--p99-ms", type=float, help="prefer what keeps the 99th percentile below this")
    parser.add_argument("--dry-run", action="store_true", help="measure, and write nothing")
    options = parser.parse_args(arguments)
    if options.callers < 1 or options.seconds <= 0:
        parser.error("--callers is at least 1, --seconds more than 0")
    repository = options.model_repository
    try:
        read_repository(repository)
        image = options.image.read_bytes() if options.image else own_image(repository)
        best, found, before = tune(
            read_settings(repository),
            len(os.sched_getaffinity(0)),
            lambda settings: measure(repository, settings, image, options.callers, options.seconds),
            options.p99_ms,
            lambda line: print(line, flush=True),
        )
        if not options.dry_run:
            write_settings(repository, best)
    except (ServerError, OSError) as error:
        print(f"server.tune: {error}", file=sys.stderr)
        return 1
    change = found.images_per_s / before.images_per_s
    print(f"{'would write' if options.dry_run else 'wrote'} {best}: {change:.2f} times the images a second of before")
    return 0


def own_image(repository: Path) -> bytes:
    """The picture that preprocess is warmed up with, else the canary."""
    warmup = repository / PREPROCESS / "warmup" / "image"
    return warmup.read_bytes()[4:] if warmup.is_file() else canary_png()


if __name__ == "__main__":
    sys.exit(main())
