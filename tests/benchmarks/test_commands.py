"""A script refuses in one line what it cannot do; one without options says in --help what it does."""

import importlib
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kernels  # noqa: F401 - loads the library, before a test sets WIDEFIELD_NATIVE
from server.backends import build
from server.tritonserver_options import ENVIRONMENT, SPIN

PARTS = ("device", "native", "native_speed", "end_to_end", "served", "served_layout", "kernel_times")
MODULES = ["benchmarks.report", "benchmarks.demo", "benchmarks.evidence.report", "kernels.native.build"]
MODULES += [f"benchmarks.gpu_check.{part}" for part in PARTS]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--nonsense", 2)])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_nothing_is_done(
    name: str, option: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WIDEFIELD_NATIVE", "0")  # the library's build sets both
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [name, option])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == status
    said = capsys.readouterr()
    if status:
        assert f"unrecognized arguments: {option}" in said.err
    else:
        assert (importlib.import_module(name).__doc__ or "").splitlines()[0] in said.out


@pytest.mark.parametrize("name", ["benchmarks.report", "benchmarks.overload", "benchmarks.kernels"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_usage_is_what_is_typed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module(name, run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} ")


@pytest.mark.parametrize("name", ["benchmarks.kernels", "benchmarks.masked_patch_loss"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_gpu_that_is_not_there_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [name, "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("--device cuda: PyTorch sees no GPU here\n")


WRONG = [
    ("benchmarks.cpu_inference", "--batches", "1 0"),
    ("benchmarks.cpu_inference", "--batches", "1,8"),
    ("benchmarks.cpu_inference", "--rounds", "0"),
    ("benchmarks.evidence", "--jobs", "0"),
    ("benchmarks.evidence", "--seeds", "0"),
    ("benchmarks.first_request", "--starts", "0"),
    ("benchmarks.fuzz", "--cases", "0"),
    ("benchmarks.gpu_check", "--seconds", "nan"),
    ("benchmarks.instances", "--repeats", "0"),
    ("benchmarks.instances", "--seconds", "0"),
    ("benchmarks.kernels", "--batches", "a"),
    ("benchmarks.kernels", "--rounds", "-1"),
    ("benchmarks.kernels", "--seconds", "inf"),
    ("benchmarks.kernels", "--tune", "-5"),
    ("benchmarks.kernels", "--tune", "nan"),
    ("benchmarks.kernels.cpu_gradients", "--batch", "0"),
    ("benchmarks.kernels.cpu_gradients", "--rounds", "0"),
    ("benchmarks.masked_patch_loss", "--batches", ""),
    ("benchmarks.masked_patch_loss", "--rounds", "1.5"),
    ("benchmarks.overload", "--deadline", "-1"),
    ("benchmarks.overload", "--repeats", "0"),
    ("benchmarks.overload", "--seconds", "0"),
    ("benchmarks.preprocess", "--rounds", "0"),
    ("benchmarks.resilience", "--requests", "0"),
    ("benchmarks.resilience", "--restarts", "2"),
    ("benchmarks.serving", "--repeats", "0"),
    ("benchmarks.serving", "--seconds", "0"),
    ("benchmarks.serving_overhead", "--rounds", "0"),
    ("benchmarks.slow_clients", "--clients", "0"),
    ("benchmarks.slow_clients", "--seconds", "x"),
    ("benchmarks.training_images", "--rounds", "0"),
    ("benchmarks.transports", "--rounds", "0"),
]


@pytest.mark.parametrize(("name", "option", "value"), WRONG)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_number_that_measures_nothing_is_refused_before_anything_is_written(
    name: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = value.split(" ")
    monkeypatch.setattr(sys, "argv", [name, option, *parts])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 2
    part = parts[-1]
    assert re.search(rf"error: argument {option}: '{part}': give a (whole )?number", capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_openvino_is_not_compared_with_another_precision(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", "--ways", "openvino", "--models", "nano", "small-bf16"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.serving", run_name="__main__")
    assert ended.value.code == 2
    assert "--models small-bf16: OpenVINO reads ONNX" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["nothing", "htp/0/17", "http/0/x", "http/17"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_case_that_is_none_is_not_replayed_as_another(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", "--replay", case])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.fuzz", run_name="__main__")
    assert ended.value.code == 2
    said = f"--replay '{case}': give KIND/SEED/NUMBER, a kind of image in process, image served, http, grpc"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("benchmarks.cpu_inference", "--arch"),
        ("benchmarks.first_request", "--archs replknet_nano"),
        ("benchmarks.overload", "--arch"),
        ("benchmarks.serving_overhead", "--archs replknet_nano"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_an_architecture_that_is_not_there_is_named(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.harness.run_as_served", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", [name, *option.split(), "replknet_none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 2
    assert "arch 'replknet_none' is unknown: choose one of replknet_31b, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "option"),
    [("benchmarks.instances", "--models"), ("benchmarks.serving", "--models"), ("benchmarks.serving", "--peers")],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_name_that_is_not_there_is_wrong_usage(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, option, "none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 2
    assert f"argument {option}: invalid choice: 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["benchmarks.overload", "benchmarks.serving_overhead"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_bare_loop_runs_with_what_the_server_s_processes_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server's settings its OpenMP threads span longer, and took cores from the server."""
    monkeypatch.setattr(os, "environ", dict(os.environ) | ENVIRONMENT)
    monkeypatch.setattr(os, "execv", lambda program, arguments: sys.exit(f"again as {arguments[2]}"))
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit, match=f"again as {name}"):
        runpy.run_module(name, run_name="__main__")
    assert os.environ.items() >= (ENVIRONMENT | SPIN).items()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_slow_clients_without_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["slow_clients", "--repository", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.slow_clients", run_name="__main__")
    assert ended.value.code == 2
    assert f"--repository: model repository {tmp_path / 'none'} does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("{", "no results of a GPU, kernels_<gpu>.json (Expecting property name"),
        ('{"rows": [{"dtype": "bfloat16"}]}', "no results of a GPU, kernels_<gpu>.json ('batch')"),
        ('{"rows": []}', "no results of a GPU, kernels_<gpu>.json (kernels has no row in bfloat16"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_what_cannot_be_drawn_is_named(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kernels.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["kernels", "--draw", str(path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.kernels", run_name="__main__")
    assert ended.value.code == 2
    assert f"--draw {path}: {said}" in capsys.readouterr().err


KERNELS = [
    ["benchmarks.kernels", "--device", "cpu"],
    ["benchmarks.kernels.cpu_gradients"],
    ["benchmarks.cpu_inference"],
    ["benchmarks.compare"],
]


Refused = Callable[[list[str], str], None]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Refused:
    """refused(arguments, reason): the command, a module and its options, ends before it measures anything."""

    def check(arguments: list[str], reason: str) -> None:
        monkeypatch.setattr("benchmarks.harness.run_as_served", lambda *_, **__: None)
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match=reason):
            runpy.run_module(arguments[0], run_name="__main__")

    return check


@pytest.mark.parametrize("arguments", KERNELS, ids=lambda arguments: arguments[0])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_pytorch_is_not_timed_in_our_place(
    arguments: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator without its library, which is not built or left out, is PyTorch's convolution."""
    monkeypatch.setattr("kernels.native.is_loaded", lambda: False)
    refused(arguments, r"PyTorch's convolution would be timed as Widefield's: python kernels/native")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_pillow_is_not_timed_in_our_place(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.libraries.find_resize", lambda: None)
    refused(["benchmarks.preprocess"], r"Pillow's resize would be timed as Widefield's: python server/backends")


SERVERS = ("demo", "first_request", "fuzz", "instances", "overload", "resilience", "serving", "serving_overhead")
SERVERS += ("slow_clients", "transports")


@pytest.mark.parametrize(
    "arguments",
    [*KERNELS, *([f"benchmarks.{name}"] for name in SERVERS)],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_native_library_of_other_sources_is_not_timed(
    arguments: list[str], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libwidefield.so"
    library.touch()
    library.with_suffix(".stamp").write_text("older")
    monkeypatch.setattr("kernels.native.native_library", lambda: library)
    refused(arguments, f"{library} is not built from these sources.*: python kernels/native/build")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_s_library_of_other_sources_is_not_timed(
    name: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without some of the libraries the server runs on, only more slowly."""
    fixes, real = build.FIXES, build.fingerprint
    monkeypatch.setattr(build, "fingerprint", lambda library: "newer" if library is fixes else real(library))
    refused([f"benchmarks.{name}"], r"server's fixes: not built from these sources.*: python server/backends/")
