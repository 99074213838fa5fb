"""The preprocess step by itself: images a second against Pillow, torchvision and OpenCV pipelines of equal output.

    python -m benchmarks.preprocess [--rounds 10]

Encoded bytes in, pixels [224,224,3] of uint8 out: the shorter side resized to 256, the centre cut out; one thread each,
with the server's allocator settings. Equal is within 1 grey level on average of Pillow's full decoding and bicubic
resize, the training's evaluation transform; a candidate that differs more is listed with its distance and without a
speed. Also: the memory that one 12-megapixel photograph takes in a new process, with reduced decoding and without.
"""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.commands import add_rounds, command_parser
from benchmarks.harness import other_work_warning, publish, run_as_served, versions
from benchmarks.photographs import files
from benchmarks.served import STEP, load_transform
from benchmarks.timing import interleaved
from server.libraries import find_resize

SIZE, RESIZE = 224, 256
EQUAL = 1.0  # grey levels, on average
OURS, BASELINE = "Widefield", "Pillow"
Pipeline = Callable[[bytes], np.ndarray]
MEMORY = """
import re, sys
from dataclasses import replace
from pathlib import Path
from benchmarks.preprocess import settings_of, transform
data = Path(sys.argv[1]).read_bytes()
settings = replace(settings_of(), reduced_decoding=sys.argv[2] == "reduced")
read = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
transform().Image.init()
Path("/proc/self/clear_refs").write_text("5")  # the largest footprint counts from here
before = read("VmRSS")
transform().preprocess(data, settings)
print(read("VmHWM") - before)
"""


@functools.cache
def transform() -> Any:
    return load_transform(STEP)


def settings_of() -> Any:
    return transform().Settings(image_size=SIZE, resize_size=RESIZE, interpolation="bicubic")


def candidates() -> dict[str, Pipeline]:
    import cv2
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    from benchmarks.serving import peer  # plain Pillow, at the same sizes

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    settings, module = settings_of(), transform()
    full = replace(settings, reduced_decoding=False)
    on_tensors = v2.Compose(
        [v2.Resize(RESIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(SIZE)]
    )

    def torchvision(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return on_tensors(decode_image(encoded, ImageReadMode.RGB)).permute(1, 2, 0).numpy()

    def opencv(data: bytes, flag: int, filters: int) -> np.ndarray:
        pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flag), cv2.COLOR_BGR2RGB)
        height, width = pixels.shape[:2]
        short = min(height, width)
        size = (RESIZE * width // short, RESIZE * height // short)
        left, top = round((size[0] - SIZE) / 2), round((size[1] - SIZE) / 2)
        return cv2.resize(pixels, size, interpolation=filters)[top : top + SIZE, left : left + SIZE]

    def opencv_and_pillow(data: bytes) -> np.ndarray:
        pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return peer.resize_and_crop(module.Image.fromarray(pixels))

    return {
        OURS: lambda data: module.preprocess(data, settings),
        "Widefield, decoded in full": lambda data: module.preprocess(data, full),
        BASELINE: peer.decode,
        "torchvision": torchvision,
        "OpenCV, cubic": lambda data: opencv(data, cv2.IMREAD_COLOR, cv2.INTER_CUBIC),
        "OpenCV, area": lambda data: opencv(data, cv2.IMREAD_COLOR, cv2.INTER_AREA),
        "OpenCV, decoded at 1/4, area": lambda data: opencv(data, cv2.IMREAD_REDUCED_COLOR_4, cv2.INTER_AREA),
        "OpenCV's decoder, Pillow's resize": opencv_and_pillow,
    }


def distances(pipeline: Pipeline, baseline: Pipeline, images: list[bytes]) -> tuple[float, int]:
    """Return differences in grey levels: the mean of the image where it is largest, and the largest of all pixels."""
    differences = [np.abs(pipeline(data).astype(int) - baseline(data)) for data in images]
    return max(float(d.mean()) for d in differences), max(int(d.max()) for d in differences)


def compare(pipelines: dict[str, Pipeline], name: str, images: list[bytes], rounds: int) -> dict[str, Any]:
    """Measure one kind of file: each candidate's distance, and images a second if it is equal."""
    found = {key: distances(run, pipelines[BASELINE], images) for key, run in pipelines.items()}
    equal = {
        key: functools.partial(lambda run: [run(data) for data in images], run)
        for key, run in pipelines.items()
        if found[key][0] <= EQUAL
    }
    timings = interleaved(equal, rounds)
    rows = []
    for key, (mean, most) in found.items():
        row: dict[str, Any] = {"pipeline": key, "mean_difference": round(mean, 3), "max_difference": most}
        if key in timings:
            ms = timings[key].median / len(images)
            row |= {"images_per_s": round(1e3 / ms, 2), "ms": round(ms, 3)}
            row["ratio_to_pillow"] = round(timings[BASELINE].median / timings[key].median, 3)
        rows.append(row)
        speed = (
            f"{row['images_per_s']:8.1f} images/s {row['ratio_to_pillow']:5.2f} x" if key in timings else "not equal"
        )
        print(f"{name:24} {key:34} {speed}, {mean:.2f} grey levels away, {most} at most", flush=True)
    sizes = [len(data) for data in images]
    return {"file": name, "bytes": sizes, "rows": rows}


def memory_mib(data: bytes) -> dict[str, float]:
    """MiB that decoding `data` adds to the peak memory of a new process."""
    found = {}
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        for how in ("full", "reduced"):
            command = [sys.executable, "-c", MEMORY, file.name, how]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found[how] = round(int(result.stdout) / 1024, 1)
    return found


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    add_rounds(parser, 10)
    options = parser.parse_args()
    run_as_served("benchmarks.preprocess")
    if find_resize() is None:
        raise SystemExit(
            "libwidefield_resize.so is not built, or of other sources, so that Pillow's resize would be timed as "
            "Widefield's: python server/backends/build.py resize"
        )
    warning = other_work_warning()
    pipelines = candidates()
    memory: dict[str, float] = {}
    rows = []
    for name, images in files():
        memory = memory or memory_mib(images[0])
        rows.append(compare(pipelines, name, images, options.rounds))
    print(f"12 MP takes {memory['full']} MiB decoded in full, {memory['reduced']} MiB at reduced size")
    publish(
        "preprocess",
        resize=RESIZE,
        image_size=SIZE,
        rounds=options.rounds,
        memory_mib_12_mp=memory,
        versions=versions("pillow", "torchvision", "opencv-python-headless", "numpy"),
        warning=warning,
        rows=rows,
    )


if __name__ == "__main__":
    main()
