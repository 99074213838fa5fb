#!/usr/bin/env python3
"""Take the whole path on real handwritten digits: train, build, serve, classify, draw. `make demo`, `make serve`."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from client import Classifier, Prediction
from server import RepositoryError, ServerError, TritonServer
from server.__main__ import parse_arguments
from server.checksums import version_folders
from server.repository import verify_newest

CHECKPOINT = Path("runs/digits-nano")
HELD_OUT = Path("data/digits/val")
PICTURE = Path("runs/demo.png")
DIGITS = [str(digit) for digit in range(10)]
THREADS = "2"  # fixed, so that the tracked config is the same on every machine

console = Console()


class DemoError(RuntimeError):
    """The demo cannot run; the message says why in one line."""


def train() -> None:
    """Fine-tune the nano model on the digits, unless it and they are there."""
    if (CHECKPOINT / "model.safetensors").exists() and held_out_images():
        console.print(f"[dim]{CHECKPOINT} is trained; remove it to train again[/]")
        return
    command = [sys.executable, "-m", "training.finetune", "--preset", "digits", "--output", str(CHECKPOINT)]
    subprocess.run(command, check=True)


def build(repository: Path) -> None:
    """Write the model repository, unless it holds this checkpoint."""
    if is_built(CHECKPOINT, repository):
        console.print(f"[dim]{repository} holds this checkpoint[/]")
        return
    command = [sys.executable, "build_models.py", "--weights", str(CHECKPOINT), "--output", str(repository)]
    subprocess.run([*command, "--threads", THREADS, "--parity-images", str(HELD_OUT)], check=True)


def is_built(checkpoint: Path, repository: Path) -> bool:
    """Whether `repository` serves this checkpoint.

    Raises `DemoError` if it holds another network, or its build.json is damaged.
    """
    newest = newest_build(repository)
    if newest is None:
        return False
    remedy = "and would be overwritten: move it away, or name another folder: demo.py --repository FOLDER"
    try:
        record = json.loads(newest.read_text())
        labels, held = record["config"]["labels"], "{arch} of {num_classes} classes".format(**record["config"])
    except (ValueError, LookupError, TypeError) as error:
        raise DemoError(f"{newest} is damaged ({type(error).__name__}), {remedy}") from error
    if labels != DIGITS:
        raise DemoError(f"{repository} holds a {held}, not the demo's digits, {remedy}")
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    try:
        verify_newest(repository)
    except RepositoryError:  # the checkout's code is newer than the build
        return False
    served = (newest.with_name("model.pt"), repository / "softmax/1/model.pt")
    return record["weights_sha256"] == weights and all(model.exists() for model in served)


def newest_build(repository: Path) -> Path | None:
    """The build.json of the version that is served, in TorchScript or ONNX."""
    records = [folder / "build.json" for folder in version_folders(repository / "backbone")]
    return next((record for record in reversed(records) if record.exists()), None)


def held_out_images() -> list[tuple[Path, str]]:
    """(file, true label) of every image that training did not see."""
    return [(path, path.parent.name) for path in sorted(HELD_OUT.glob("*/*.png"))]


def classify(server: TritonServer, protocol: str, paths: list[Path]) -> tuple[list[list[Prediction]], float]:
    """Top-3 answers in order, and the seconds they took."""
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with Classifier(url, protocol=protocol) as classifier:
        started = time.perf_counter()
        answers = [classifier.classify(path, top=3) for path in paths]
        return answers, time.perf_counter() - started


def show(images: list[tuple[Path, str]], answers: list[list[Prediction]], title: str) -> None:
    table = Table("image", "truth", "1st", "2nd", "3rd", title=title)
    for (path, truth), top in zip(images, answers, strict=True):
        cells = [f"{p.label}  {p.probability:6.1%}" for p in top]
        cells[0] = f"[{'green' if top[0].label == truth else 'red'}]{cells[0]}[/]"
        table.add_row(str(path), truth, *cells)
    console.print(table)


def demo(repository: Path) -> int:
    images = held_out_images()
    paths = [path for path, _ in images]
    shown = range(0, len(images), max(1, len(images) // 6))
    results = {}
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_file=Path("runs/server.log")) as server:
        console.print(f"tritonserver is ready: gRPC {server.grpc_url}, HTTP {server.http_url}")
        for protocol in ("grpc", "http"):
            answers, seconds = classify(server, protocol, paths)
            correct = sum(top[0].label == truth for top, (_, truth) in zip(answers, images, strict=True))
            results[protocol] = (answers, correct / len(images))
            show([images[i] for i in shown], [answers[i] for i in shown], f"held-out digits over {protocol}")
            console.print(
                f"{protocol}: {correct} of {len(images)} held-out images right, [bold]{correct / len(images):.2%}[/]; "
                f"{1000 * seconds / len(images):.1f} ms an image, one at a time\n"
            )
    answers, accuracy = results["grpc"]
    same = answers == results["http"][0]
    console.print("gRPC and HTTP gave the same answers" if same else "[red]gRPC and HTTP gave different answers[/]")
    draw(images, answers)
    console.print(f"look at {PICTURE}")
    if accuracy < 0.97:
        console.print(f"[red]served accuracy {accuracy:.2%} is below 97 %[/]")
    return 0 if same and accuracy >= 0.97 else 1


def draw(images: list[tuple[Path, str]], answers: list[list[Prediction]]) -> None:
    """Every wrong answer and a spread of right ones, each with its three probabilities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    wrong = [i for i, (_, truth) in enumerate(images) if answers[i][0].label != truth][:6]
    right = [i for i in range(len(images)) if answers[i][0].label == images[i][1]]
    right = [right[i * len(right) // (24 - len(wrong))] for i in range(24 - len(wrong))]
    figure, grid = plt.subplots(4, 12, figsize=(15, 6.4), width_ratios=[1, 1.1] * 6)
    for axes in grid.flat:
        axes.axis("off")
    for cell, index in enumerate(wrong + right):
        picture, bars = grid[cell // 6][cell % 6 * 2], grid[cell // 6][cell % 6 * 2 + 1]
        path, truth = images[index]
        colour = "tab:green" if answers[index][0].label == truth else "tab:red"
        picture.imshow(Image.open(path), cmap="gray_r", interpolation="nearest")
        picture.set_title(f"truth {truth}", fontsize=9)
        labels = [p.label for p in answers[index]]
        bars.axis("on")
        bars.barh(labels, [p.probability for p in answers[index]], color=[colour, "lightgray", "lightgray"])
        bars.set(xlim=(0, 1.28), xticks=[])
        bars.invert_yaxis()
        bars.spines[["top", "right", "bottom"]].set_visible(False)
        bars.tick_params(length=0, labelsize=9)
        for row, prediction in enumerate(answers[index]):
            bars.text(prediction.probability + 0.03, row, f"{prediction.probability:.0%}", va="center", fontsize=8)
    correct = sum(answers[i][0].label == truth for i, (_, truth) in enumerate(images))
    figure.suptitle(
        f"Held-out digits, answered by tritonserver: {correct} of {len(images)} right ({len(wrong)} wrong first)"
    )
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--serve", action="store_true", help="serve until Ctrl-C instead of classifying; other options go to the server"
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(__file__).with_name("model_repository"),
        metavar="FOLDER",
        help="model repository to build (default: model_repository)",
    )
    options, for_server = parser.parse_known_args()
    if for_server and not options.serve:
        parser.error(f"{for_server[0]} is an option of the server: it goes with --serve")
    if parse_arguments(for_server).model_repository:  # exits with status 2 for a wrong one, before the training
        parser.error("--model-repository is an option of the server alone: name the folder with --repository")
    repository = Path(os.path.relpath(options.repository.absolute(), Path(__file__).parent))
    os.chdir(Path(__file__).parent)
    try:
        train()
        build(repository)
        if options.serve:
            command = [sys.executable, "-m", "server", "--model-repository", str(repository)]
            os.execv(sys.executable, [*command, "--example", str(held_out_images()[0][0]), *for_server])
        return demo(repository)
    except subprocess.CalledProcessError as error:
        return error.returncode  # the step has said why
    except (DemoError, ServerError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
