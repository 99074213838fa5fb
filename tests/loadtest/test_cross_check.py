"""Our figures against those of hey, another load generator, on the same server, one after the other, in turn."""

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from loadtest.images import load_images

ROUNDS, SECONDS = 2, 6


def ours(loadtest: Callable, host: str, folder: Path, users: int) -> tuple[float, ...]:
    """answers/s, p50 ms, p90 ms."""
    saved = folder / "results.json"
    load = ["--users", str(users), "--seconds", str(SECONDS), "--warm-up", "1", "--images", str(folder)]
    done = loadtest("--host", host, "--protocol", "http", *load, "--results", str(saved))
    assert done.returncode == 0, done.stderr
    row = json.loads(saved.read_text())["phases"][-1]["protocols"]["HTTP"]
    return row["answered_per_s"], row["p50_ms"], row["p90_ms"]


def heys(host: str, folder: Path, users: int) -> tuple[float, ...]:
    header = json.loads((folder / "header.json").read_text())
    command = ["hey", "-z", f"{SECONDS}s", "-c", str(users), "-m", "POST", "-T", "application/octet-stream"]
    command += ["-H", f"Inference-Header-Content-Length: {header}", "-D", str(folder / "body")]
    done = subprocess.run(
        [*command, f"http://{host}/v2/models/classifier/infer"], capture_output=True, text=True, check=True, timeout=60
    )
    assert re.findall(r"\[(\d+)]\s+\d+ responses", done.stdout) == ["200"], done.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    parts = dict(re.findall(r"(\d+)% in ([\d.]+) secs", done.stdout))
    assert rate is not None
    return float(rate[1]), 1000 * float(parts["50"]), 1000 * float(parts["90"])


@pytest.mark.slow
@pytest.mark.parametrize("users", [1, 4])
def test_within_a_tenth(loadtest: Callable, counting_server: Callable, tmp_path: Path, users: int) -> None:
    """A server that takes 50 ms for each request, whatever else the machine does: neither generator is the limit."""
    if shutil.which("hey") is None:
        pytest.skip("hey is not installed: apt-get install hey")
    host = counting_server(delay=0.05).address
    (photograph,) = load_images(sizes="640:1")
    (tmp_path / "photograph.jpg").write_bytes(photograph)
    tensor = struct.pack("<I", len(photograph)) + photograph
    size = {"binary_data_size": len(tensor)}
    inputs = [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": size}]
    outputs = [{"name": "probabilities", "parameters": {"classification": 5, "binary_data": False}}]
    header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    (tmp_path / "header.json").write_text(str(len(header)))
    (tmp_path / "body").write_bytes(header + tensor)

    figures: dict[str, list[tuple[float, ...]]] = {"ours": [], "hey": []}
    for _ in range(ROUNDS):
        figures["ours"].append(ours(loadtest, host, tmp_path, users))
        figures["hey"].append(heys(host, tmp_path, users))
    print(figures)
    for index, name in enumerate(("answers/s", "p50", "p90")):
        mine, other = (median(row[index] for row in figures[kind]) for kind in ("ours", "hey"))
        assert mine == pytest.approx(other, rel=0.1), f"{name}: {figures}"
