"""From an image file to a ranked answer, through a real tritonserver: parity at every hand-over."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock, Mock

import numpy as np
import psutil
import pytest
import torch
import tritonclient.grpc

import demo
from client import Classifier, InvalidImageError, Prediction
from models import load_checkpoint, reparameterize
from server import TritonServer
from training.augment import eval_transform

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
HELD_OUT = ROOT / "data/digits/val"


@pytest.fixture(scope="module")
def held_out(digits_checkpoint: Path) -> list[Path]:
    return sorted(HELD_OUT.glob("*/*.png"))


def served_probabilities(server: TritonServer, paths: list[Path]) -> np.ndarray:
    """[len(paths), classes], asked for in requests of eight images."""
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    answers = []
    for start in range(0, len(paths), 8):
        part = [path.read_bytes() for path in paths[start : start + 8]]
        image = tritonclient.grpc.InferInput("image", [len(part), 1], "BYTES")
        image.set_data_from_numpy(np.array(part, dtype=object).reshape(-1, 1))
        answers.append(client.infer("classifier", [image]).as_numpy("probabilities"))
    client.close()
    return np.concatenate(answers)


def private_folders(temporary: Path) -> set[str]:
    return {path.name for path in temporary.glob("widefield-*")}


def run_demo(models: Path, temporary: Path) -> tuple[str, set[str]]:
    """Run demo.py; return its output and the names of its servers' private folders."""
    command = [sys.executable, "demo.py", "--repository", str(models)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    folders: set[str] = set()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with ThreadPoolExecutor(1) as pool, subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as demo:
        said = pool.submit(demo.communicate, timeout=240)
        while not said.done():
            folders |= private_folders(temporary)
            time.sleep(0.1)
    text = said.result()[0]
    assert demo.returncode == 0, text
    return text, folders


def assert_nothing_left(folders: set[str], temporary: Path) -> None:
    """Assert that servers with these private folders left no process, shared memory or folder."""
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    named = [*commands, *os.listdir("/dev/shm")]
    assert not [each for each in named if any(folder in each for folder in folders)]
    assert not private_folders(temporary)


def test_served_accuracy_is_the_same_on_both_protocols(digits_server: TritonServer, held_out: list[Path]) -> None:
    answers = {}
    for protocol, url in (("grpc", digits_server.grpc_url), ("http", digits_server.http_url)):
        with Classifier(url, protocol=protocol) as classifier:
            answers[protocol] = [classifier.classify(path, top=3) for path in held_out]
    assert answers["grpc"] == answers["http"]
    right = sum(top[0].label == path.parent.name for top, path in zip(answers["grpc"], held_out, strict=True))
    assert len(held_out) >= 350
    assert right / len(held_out) >= 0.97


def test_served_equals_the_training_form(
    digits_server: TritonServer, digits_checkpoint: Path, held_out: list[Path]
) -> None:
    """Checkpoint in float64 with training's own transform, against what the wire says."""
    model, config = load_checkpoint(digits_checkpoint)
    transform = eval_transform(config)
    from PIL import Image

    held_out = held_out[::6]
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in held_out]).double()
    with torch.inference_mode():
        expected = model.double().eval()(images).softmax(1).numpy()
        deployed = reparameterize(model).eval()(images).softmax(1).numpy()
    np.testing.assert_allclose(deployed, expected, atol=1e-9)
    np.testing.assert_allclose(served_probabilities(digits_server, held_out), expected, atol=1e-4)


def test_command_line_answers_as_the_library_does(digits_server: TritonServer, held_out: list[Path]) -> None:
    command = [sys.executable, "-m", "client", "classify", str(held_out[0].parent), "--json", "--top", "2"]
    done = subprocess.run(
        [*command, "--url", digits_server.http_url, "--protocol", "http"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert held_out[0].name in done.stdout
    with Classifier(digits_server.grpc_url) as classifier:
        best = classifier.classify(held_out[0], top=2)[0]
    answers = {Path(line["image"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    first = answers[held_out[0].name]["predictions"][0]
    assert first["label"] == best.label
    assert first["probability"] == pytest.approx(best.probability, abs=1e-4)


def test_demo_ends_by_itself_and_leaves_nothing(digits_checkpoint: Path, tmp_path: Path) -> None:
    models, temporary = tmp_path / "models", tmp_path / "tmp"
    temporary.mkdir()
    started = time.time()
    said, folders = run_demo(models, temporary)
    assert "gave the same answers" in said
    assert (ROOT / "runs/demo.png").stat().st_mtime >= started
    built = {path: path.stat().st_mtime_ns for path in models.rglob("*.p*t*")}
    said, more = run_demo(models, temporary)
    assert "holds this checkpoint" in " ".join(said.split())  # a long path breaks the line
    assert "gave the same answers" in said
    assert {path: path.stat().st_mtime_ns for path in built} == built
    assert len(folders | more) == 2
    assert_nothing_left(folders | more, temporary)


@pytest.mark.parametrize("artifact", ["model.pt", "model.onnx"])
def test_the_demo_does_not_overwrite_another_network(digits_checkpoint: Path, tmp_path: Path, artifact: str) -> None:
    version = tmp_path / "models/backbone/3"
    version.mkdir(parents=True)
    (version / artifact).write_bytes(b"")
    record = {"config": {"arch": "replknet_31b", "num_classes": 1000, "labels": None}}
    (version / "build.json").write_text(json.dumps(record))
    command = [sys.executable, "demo.py", "--repository", str(tmp_path / "models")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    named = os.path.relpath(tmp_path / "models", ROOT)
    assert done.stderr.startswith(f"demo: {named} holds a replknet_31b of 1000 classes")
    assert done.stderr.count("\n") == 1, "as it is, however narrow the terminal"
    assert (version / "build.json").exists()


def test_the_demo_builds_again_what_is_not_as_it_was_built(
    digits_checkpoint: Path, digits_repository: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(digits_repository, tmp_path / "models")
    assert demo.is_built(digits_checkpoint, root)
    (root / "backbone/1/model.pt").rename(tmp_path / "model.pt")  # ONNX alone: the demo's server runs TorchScript
    assert not demo.is_built(digits_checkpoint, root)
    (tmp_path / "model.pt").rename(root / "backbone/1/model.pt")
    with (root / "preprocess/1/model.py").open("a") as code:
        code.write("# newer\n")
    assert not demo.is_built(digits_checkpoint, root)
    trained_again = tmp_path / "checkpoint"
    trained_again.mkdir()
    (trained_again / "model.safetensors").write_bytes(b"other weights")
    assert demo.is_built(digits_checkpoint, digits_repository)
    assert not demo.is_built(trained_again, digits_repository)


@pytest.mark.parametrize(
    ("right", "same", "status"), [(97, True, 0), (96, True, 1), (100, False, 1)], ids=["good", "wrong", "different"]
)
def test_the_demo_fails_where_answers_are_wrong_or_differ(
    right: int, same: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["7"] * right + ["1"] * (100 - right)

    def classify(server: TritonServer, protocol: str, paths: list[Path]) -> tuple[list[list[Prediction]], float]:
        given = labels if same or protocol == "grpc" else [*labels[1:], "1"]
        return [[Prediction(label, int(label), 1.0)] for label in given], 1.0

    monkeypatch.setattr(demo, "held_out_images", lambda: [(Path("7/0.png"), "7")] * 100)
    monkeypatch.setattr(demo, "TritonServer", MagicMock())
    monkeypatch.setattr(demo, "classify", classify)
    monkeypatch.setattr(demo, "draw", Mock())
    assert demo.demo(tmp_path) == status


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_log_names_the_request_whose_image_was_refused(digits_server: TritonServer, protocol: str) -> None:
    url = digits_server.grpc_url if protocol == "grpc" else digits_server.http_url
    name = f'order-{protocol}-"7"\nE forged'
    with Classifier(url, protocol=protocol) as classifier, pytest.raises(InvalidImageError):
        classifier.classify(b"no image", request_id=name)

    def logged() -> list[str]:
        log = digits_server.launch.runtime.log.read_text()
        return [line for line in log.splitlines() if f"order-{protocol}" in line]

    deadline = time.monotonic() + 5  # the answer may be here before the line is written
    while not logged() and time.monotonic() < deadline:
        time.sleep(0.05)
    (line,) = logged()
    assert json.dumps(f"[request id: {name}] not a JPEG")[1:-1] in line
    assert re.match(r"\S+Z W ", line)


def test_serve_stays_and_ctrl_c_leaves_nothing(
    digits_checkpoint: Path, digits_repository: Path, tmp_path: Path
) -> None:
    output, temporary = tmp_path / "output", tmp_path / "tmp"
    temporary.mkdir()
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with output.open("w") as file:
        command = [sys.executable, "demo.py", "--serve", "--repository", str(digits_repository), *ports]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "client classify" not in output.read_text() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        text = output.read_text()
        assert process.poll() is None, text
        command = re.search("try: +(.*)", text).group(1)  # pasted as it is printed
        pasted = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert pasted.returncode == 0, pasted.stderr
        assert "%" in pasted.stdout
        children = psutil.Process(process.pid).children(recursive=True)
        folders = private_folders(temporary)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0, output.read_text()
    finally:
        process.kill()
    assert all(name in text for name in ("HTTP", "gRPC", "metrics")), text
    assert text.count("127.0.0.1:") >= 3
    assert children, "no tritonserver was running"
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert len(folders) == 1
    assert_nothing_left(folders, temporary)


def test_record_and_labels_fit(digits_repository: Path) -> None:
    labels = (digits_repository / "classifier/labels.txt").read_text().splitlines()
    record = json.loads((digits_repository / "backbone/1/build.json").read_text())
    assert labels == [str(digit) for digit in range(10)]
    assert record["config"]["num_classes"] == 10
    assert all(not math.isnan(parity["largest_difference"]) for parity in record["parity"])
