"""Weights as trainers write them are loaded; everything else is refused, and changes nothing."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nano import State, nano, same
from safetensors.torch import save_file

from models import (
    ModelConfig,
    WeightsError,
    create_model,
    load_weights,
    reparameterize,
    save_checkpoint,
)

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def state() -> State:
    return nano(1).state_dict()


def write(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)  # type: ignore[attr-defined]
    else:
        torch.save(content, path)
    return path


def refused(path: Path, *messages: str, **options: bool) -> None:
    """`WeightsError` with the file's name and each message, and not one weight changed."""
    model = nano(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, path, **options)
    for message in (str(path), *messages):
        assert message in str(error.value)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
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
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"model": {f"_orig_mod.module.{name}": value for name, value in s.items()}},
        lambda s: {"model": {f"module._orig_mod.{name}": value for name, value in s.items()}},
        lambda s: {"model": s, "args": argparse.Namespace(lr=4e-3, drop_path=0.5)},
        lambda s: {name: value for name, value in s.items() if not name.endswith("num_batches_tracked")},
    ],
)
def test_what_trainers_write(wrap: Callable[[State], dict], state: State, tmp_path: Path) -> None:
    model = nano(0)
    load_weights(model, write(tmp_path / "weights.pth", wrap(state)))
    learned = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert same({name: model.state_dict()[name] for name in learned}, learned)


def test_averaged_weights_are_taken_on_request(state: State, tmp_path: Path) -> None:
    averaged = nano(2).state_dict()
    path = write(tmp_path / "weights.pth", {"model": state, "model_ema": averaged})
    model = nano(0)
    load_weights(model, path)
    assert same(model.state_dict(), state)
    load_weights(model, path, ema=True)
    assert same(model.state_dict(), averaged)
    refused(write(tmp_path / "plain.pth", {"model": state}), "no 'model_ema'", ema=True)


def test_published_deploy_form_is_loaded_as_such(tmp_path: Path) -> None:
    merged = nano(1)
    merged.merge_branches()
    model = nano(0)
    load_weights(model, write(tmp_path / "deploy.pth", merged.state_dict()))
    assert same(model.state_dict(), merged.state_dict())
    torch.testing.assert_close(model(IMAGES), nano(1)(IMAGES), rtol=1e-4, atol=1e-4)
    poisoned = merged.state_dict() | {"norm.weight": torch.full((256,), torch.nan)}
    refused(write(tmp_path / "poisoned.pth", poisoned), "'norm.weight' holds NaN")


def test_missing_unexpected_and_misshapen_keys_are_named(state: State, tmp_path: Path) -> None:
    names = list(state)
    first, second = names[10], names[40]
    lacking = {name: value for name, value in state.items() if name not in (first, second)}
    refused(write(tmp_path / "lacking.pth", lacking), f"has no '{first}'", "of another model")
    refused(write(tmp_path / "more.pth", state | {"extra.weight": torch.zeros(1)}), "'extra.weight'", "has not")
    wrong = state | {"stem.2.conv.weight": torch.zeros(3, 3, 1, 1)}
    refused(write(tmp_path / "shape.pth", wrong), "'stem.2.conv.weight' is [3, 3, 1, 1]", "[32, 32, 1, 1]")


def test_position_embeddings_of_another_image_size_are_called_so(tmp_path: Path) -> None:
    vit = create_model("timm/vit_tiny_patch16_224", 2, 64)
    path = write(tmp_path / "vit.safetensors", vit.state_dict())
    at_96 = create_model("timm/vit_tiny_patch16_224", 2, 96)
    why = r"'pos_embed' is \[1, 17, 192\], the model's is \[1, 37, 192\]: it is of another image size .*--image-size"
    with pytest.raises(WeightsError, match=why):
        load_weights(at_96, path)
    wider = {name: value for name, value in vit.state_dict().items()}
    wider |= {"pos_embed": torch.zeros(1, 17, 384), "norm.weight": torch.zeros(384)}
    with pytest.raises(WeightsError, match=r"'pos_embed' is \[1, 17, 384\], .*: it is of another model"):
        load_weights(vit, write(tmp_path / "wider.safetensors", wider))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    other = create_model("replknet_nano", 5, small_kernel=None)
    refused(write(tmp_path / "other.safetensors", other.state_dict()), "has no 'stages.0.blocks.0.large_kernel.small")


def test_a_re_parameterised_model_is_refused(tmp_path: Path) -> None:
    deploy = reparameterize(nano(1))
    refused(write(tmp_path / "deploy.pth", deploy.state_dict()), "load the training form")
    with pytest.raises(ValueError, match="save the training form"):
        save_checkpoint(tmp_path / "folder", deploy, ModelConfig("replknet_nano", 5))
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_other_kinds_of_numbers_are_refused(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    state["norm.weight"] = state["norm.weight"].to(dtype)
    refused(write(tmp_path / "weights.pth", state), f"'norm.weight' is {dtype}, the model's is torch.float32")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(value: float, state: State, tmp_path: Path) -> None:
    name = "stages.2.blocks.3.pw2.bn.running_var"
    state[name][1] = value
    refused(write(tmp_path / "weights.safetensors", state), f"'{name}' holds NaN or infinity")


def test_another_number_of_classes_has_its_own_message(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pth", nano(1, num_classes=9).state_dict())
    refused(path, "head.weight has 9 classes, the model has 5", "num_classes=9")
    model = nano(0)
    head = model.head.weight.clone()
    load_weights(model, path, skip_head=True)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.running_mean, nano(1, num_classes=9).norm.running_mean)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(suffix: str, share: float, state: State, tmp_path: Path) -> None:
    path = write(tmp_path / f"weights{suffix}", state)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "cannot be read")


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "weights.pth"
    torch.save({"model": Trap()}, path)
    refused(path, "could run code")
    assert not (tmp_path / "sprung").exists()


def test_other_content_is_refused(state: State, tmp_path: Path) -> None:
    refused(write(tmp_path / "list.pth", [1, 2]), "holds a list")
    refused(write(tmp_path / "mixed.pth", state | {"epoch": 3}), "'epoch' is a int")
    refused(write(tmp_path / "empty.pth", {}), "has no 'stem.0.conv.weight'")
    (tmp_path / "weights.bin").write_bytes(b"x")
    refused(tmp_path / "weights.bin", ".bin")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "cannot be read")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_weights(nano(), tmp_path / "nowhere.pth")
