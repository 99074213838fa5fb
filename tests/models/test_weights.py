"""Checkpoints written and read back, and everything that is refused."""

import argparse
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import (
    ARCHITECTURES,
    ModelConfig,
    RepLKNet,
    WeightsError,
    create_model,
    load_checkpoint,
    load_weights,
    reparameterize,
    save_checkpoint,
)

State = dict[str, torch.Tensor]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def nano(seed: int = 0, num_classes: int = 5) -> RepLKNet:
    torch.manual_seed(seed)
    model = create_model("replknet_nano", num_classes).train()
    model(torch.randn(4, 3, 32, 32))  # batch statistics that are not the default
    return model.eval()


@pytest.fixture
def state() -> State:
    return nano(1).state_dict()


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


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


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    other = create_model("replknet_nano", 5, small_kernel=None)
    refused(write(tmp_path / "other.safetensors", other.state_dict()), "has no 'stages.0.blocks.0.large_kernel.small")


def test_a_re_parameterised_model_is_refused(tmp_path: Path) -> None:
    deploy = reparameterize(nano(1))
    refused(write(tmp_path / "deploy.pth", deploy.state_dict()), "load the training form")
    with pytest.raises(ValueError, match="save the training form"):
        save_checkpoint(tmp_path / "folder", deploy, ModelConfig("replknet_nano", 5))
    assert not (tmp_path / "folder").exists()


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


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = nano(3).to(memory_format=torch.channels_last)
    labels = ["a", "b", "c", "d", "é"]
    preparation = {"image_size": 48, "crop_pct": 1.0, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    config = ModelConfig("replknet_nano", 5, labels=labels, **preparation)
    folder = tmp_path / "new" / "folder"
    save_checkpoint(folder, model, config)
    loaded, loaded_config = load_checkpoint(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert all(path.stat().st_mode & stat.S_IROTH for path in folder.iterdir())
    assert loaded_config == config
    assert same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    assert set(json.loads((folder / "config.json").read_text())) == {
        *("arch", "num_classes", "image_size", "crop_pct", "interpolation", "mean", "std", "labels")
    }


def test_a_save_replaces_the_files_and_never_writes_into_them(tmp_path: Path) -> None:
    config = ModelConfig("replknet_nano", 5)
    save_checkpoint(tmp_path, nano(1), config)
    opened = [path.open("rb") for path in sorted(tmp_path.iterdir())]
    sizes = [len(file.read()) for file in opened]
    inodes = [path.stat().st_ino for path in sorted(tmp_path.iterdir())]
    save_checkpoint(tmp_path, nano(2), config)
    assert all(path.stat().st_ino not in inodes for path in tmp_path.iterdir())
    assert [os.fstat(file.fileno()).st_size for file in opened] == sizes
    for file in opened:
        file.close()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("replknet_nano", 5)
    save_checkpoint(tmp_path, nano(1), config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(tensors: State, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("models.weights.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, nano(2), config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("mean"), "'mean' is missing"),
        (lambda c: c.update(colour="red"), "'colour' is unknown"),
        (lambda c: c.update(arch="resnet"), "arch 'resnet' is unknown"),
        (lambda c: c.update(labels=["one"]), "1 labels for num_classes 5"),
        (lambda c: c.update(std=[1, 0, 1]), "std above 0"),
        (lambda c: c.update(crop_pct=1.5), "crop_pct 1.5"),
        (lambda c: c.update(interpolation="nearest"), "'nearest'"),
        (lambda c: c.update(image_size="large"), "image_size"),
        (lambda c: c.update(image_size=16), "image_size 16"),
        (lambda c: c.update(num_classes=0), "num_classes 0"),
    ],
)
def test_bad_configs_are_named(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, nano(), ModelConfig("replknet_nano", 5))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"config\.json") as error:
        load_checkpoint(tmp_path)
    assert message in str(error.value)


def test_config_that_is_no_json_or_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_checkpoint(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_config_defaults_are_the_architectures(arch: str) -> None:
    config, own = ModelConfig(arch), ARCHITECTURES[arch]
    assert (config.image_size, config.crop_pct, tuple(config.mean), tuple(config.std)) == (
        *(own.image_size, own.crop_pct, own.mean, own.std),
    )
