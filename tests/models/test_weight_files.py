"""Files of weights as trainers write them are read, whatever their suffix; all others are refused by name."""

import argparse
import fractions
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from nano import State, nano, refused, same, write
from torch import nn

from models import classifier_config, count_classes, create_model, load_weights


@pytest.fixture
def state() -> State:
    return nano(1).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".pth.tar", ".bin", ".ckpt", ""])
def test_plain_state_dict(suffix: str, state: State, tmp_path: Path) -> None:
    model = nano(0)
    assert not same(model.state_dict(), state)
    load_weights(model, write(tmp_path / f"weights{suffix}", state))
    assert same(model.state_dict(), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s, "optimizer": {"lr": 1.0}, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: {"model": "replknet_nano", "state_dict": s},
        lambda s: {"model_state_dict": s, "epoch": 3},
        lambda s: {"model": s, "best": np.float64(3.0), "metrics": {"top1": np.float32(0.5), "seen": np.int64(7)}},
        lambda s: {"model": s, "history": np.arange(3.0), "rng": np.random.get_state()},
        lambda s: {"state_dict": {f"model.{name}": value for name, value in s.items()}, "global_step": 7},
        lambda s: {"state_dict": {f"model.{n}": v for n, v in s.items()} | {"criterion.weight": torch.ones(5)}},
        lambda s: {"state_dict": {f"model._orig_mod.{n}": v for n, v in s.items()} | {"top1.total": torch.ones(1)}},
        lambda s: {"meta": {}, "state_dict": {f"backbone.{name}": value for name, value in s.items()}},
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"model": {f"_orig_mod.module.{name}": value for name, value in s.items()}},
        lambda s: {"model": {f"module._orig_mod.{name}": value for name, value in s.items()}},
        lambda s: {"model": s, "args": argparse.Namespace(lr=4e-3, drop_path=0.5)},
        lambda s: {"model": s, "args": argparse.Namespace(output=Path("runs/x")), "log": [PurePosixPath("log")]},
        lambda s: {name: value for name, value in s.items() if not name.endswith("num_batches_tracked")},
    ],
)
def test_what_trainers_write(wrap: Callable[[State], dict], state: State, tmp_path: Path) -> None:
    model = nano(0)
    load_weights(model, write(tmp_path / "weights.pth", wrap(state)))
    learned = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert same({name: model.state_dict()[name] for name in learned}, learned)


@pytest.mark.parametrize(
    "names",
    [
        (b"numpy.core.multiarray\n", b"numpy._core.multiarray\n"),  # of NumPy 1 and 2
        tuple(f"pathlib{m}\n{s}Path\n".encode() for m in ("", "._local") for s in ("Posix", "Windows")),
    ],
)
def test_numbers_and_paths_under_another_versions_or_systems_names(
    names: tuple[bytes, ...], state: State, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    content = {"model": state, "best": np.float64(3.0), "log": Path("log")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    (here,) = (name for name in names if name in data)
    assert data.count(here) == 1
    for there in names:
        path.write_bytes(data.replace(here, there))
        model = nano(0)
        load_weights(model, path)
        assert same(model.state_dict(), state)


def test_an_encoder_in_anothers_checkpoint(state: State, tmp_path: Path) -> None:
    """OpenMMLab's classifier is outside the backbone and has another name than ours."""
    content = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("head.")}
    content |= {"head.fc.weight": torch.zeros(9, 256), "head.fc.bias": torch.zeros(9)}
    path = write(tmp_path / "mmlab.pth", {"state_dict": content})
    refused(path, "has no 'head.weight'")
    model = nano(0)
    head = model.head.weight.clone()
    load_weights(model, path, skip_head=True)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.running_mean, state["norm.running_mean"])
    assert count_classes("replknet_nano", path) is None
    assert classifier_config(path, "replknet_nano").num_classes == 1000


def test_a_prefix_that_the_model_has_itself_stays(state: State, tmp_path: Path) -> None:
    beside = {f"model.{name}": value for name, value in nano(2).state_dict().items()}
    refused(write(tmp_path / "twice.pth", state | beside), "'model.stem.0.conv.weight', which the model does not have")

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.neck = create_model("replknet_nano", 5), nn.Identity()

        def get_classifier(self) -> nn.Module:
            return self.backbone.get_classifier()  # type: ignore[operator]

    outer = Outer()
    load_weights(outer, write(tmp_path / "outer.pth", {f"backbone.{name}": value for name, value in state.items()}))
    assert same(outer.backbone.state_dict(), state)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(suffix: str, share: float, state: State, tmp_path: Path) -> None:
    path = write(tmp_path / f"weights{suffix}", state)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "cannot be read")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Trap, "posix.mkdir"),
        (lambda path: argparse.Namespace(output=[fractions.Fraction(1, 2)]), "fractions"),
        (lambda _: nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_code_in_a_pickle_is_not_run_but_named(content: Callable, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pth", {"model": content(tmp_path / "sprung")})
    message = refused(path, f"it holds {name}", "could run code", ".safetensors")
    assert not (tmp_path / "sprung").exists()
    assert "\x1b" not in message
    assert "weights_only" not in message


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("photo.txt", "no weights")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is not a checkpoint: .*it looks like a web page"),
        (b"\n  <html>", "is not a checkpoint: .*it looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is not a checkpoint: .*git lfs pull"),
        (b"junk", "is not a checkpoint: it begins with b'junk'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "is not a checkpoint"),
        (b"\x80\x02junk", "cannot be read .*truncated or damaged"),
        (b"\x80\x02", r"cannot be read \(EOFError\): it is truncated or damaged"),
        (b"PK\x03\x04junk", "cannot be read .*truncated or damaged"),
        (zipped(), "cannot be read .*truncated or damaged"),
        (pickle.dumps({"a": 1.0}, protocol=4), "cannot be read .*not written by torch.save"),
        (pickle.dumps({"a": 1.0}, protocol=2), "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_is_no_checkpoint_is_called_so(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    said = refused(path)
    assert re.search(message, said), said
    assert "weights_only" not in said
    assert "\n" not in said


def test_other_content_is_refused(state: State, tmp_path: Path) -> None:
    refused(write(tmp_path / "list.pth", [1, 2]), "holds a list")
    refused(write(tmp_path / "mixed.pth", state | {"epoch": 3}), "'epoch' is a int")
    refused(write(tmp_path / "empty.pth", {}), "has no 'stem.0.conv.weight'")
    refused(write(tmp_path / "numbered.pth", {0: torch.zeros(1)}), "has no 'stem.0.conv.weight'")
    refused(write(tmp_path / "head.pth", state | {"head.weight": torch.tensor(1.0)}), "'head.weight' is []")
    assert count_classes("replknet_nano", tmp_path / "head.pth") is None
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "model.safetensors cannot be read (Is a directory)")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "cannot be read: it is a TorchScript program")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_weights(nano(), tmp_path / "nowhere.pth")
