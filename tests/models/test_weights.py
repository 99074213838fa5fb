"""Weights that fit the model are loaded; those that do not are refused, and change nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nano import State, nano, refused, same, write
from safetensors.torch import load_file
from torch import Tensor, nn

from models import (
    ModelConfig,
    RepLKNet,
    WeightsError,
    create_model,
    load_checkpoint,
    load_weights,
    reparameterize,
    save_checkpoint,
)

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def state() -> State:
    return nano(1).state_dict()


@pytest.mark.parametrize("average", ["model_ema", "state_dict_ema"])
def test_averaged_weights_are_taken_where_there_are_no_others(state: State, average: str, tmp_path: Path) -> None:
    averaged = nano(2).state_dict()
    model = nano(0)
    load_weights(model, write(tmp_path / "both.pth", {average: averaged, "model": state}))
    assert same(model.state_dict(), state)
    load_weights(model, write(tmp_path / "averaged.pth", {average: averaged, "epoch": 3}))
    assert same(model.state_dict(), averaged)


def test_a_head_that_the_model_has_not_is_named(state: State, tmp_path: Path) -> None:
    features = create_model("replknet_nano", 0)
    path = write(tmp_path / "weights.pth", state)
    with pytest.raises(WeightsError, match=r"the model has no head, skip_head=True leaves it out"):
        load_weights(features, path)
    with pytest.raises(WeightsError, match=r"which the model does not have: it belongs to another model"):
        load_weights(features, write(tmp_path / "more.pth", {"extra": torch.zeros(1)} | state))
    load_weights(features, path, skip_head=True)
    assert same(features.state_dict(), {name: tensor for name, tensor in state.items() if "head" not in name})


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
    refused(write(tmp_path / "lacking.pth", lacking), f"has no '{first}'", "belongs to another model")
    refused(write(tmp_path / "more.pth", state | {"extra.weight": torch.zeros(1)}), "'extra.weight'", "does not have")
    wrong = state | {"stem.2.conv.weight": torch.zeros(3, 3, 1, 1)}
    refused(write(tmp_path / "shape.pth", wrong), "'stem.2.conv.weight' is [3, 3, 1, 1]", "[32, 32, 1, 1]")


def test_position_embeddings_of_another_image_size_are_called_so(tmp_path: Path) -> None:
    vit = create_model("timm/vit_tiny_patch16_224", 2, 64)
    path = write(tmp_path / "vit.safetensors", vit.state_dict())
    at_96 = create_model("timm/vit_tiny_patch16_224", 2, 96)
    why = r"'pos_embed' is \[1, 17, 192\], the model's is \[1, 37, 192\]: it was made for another image size .*--image"
    with pytest.raises(WeightsError, match=why):
        load_weights(at_96, path)
    for arch, options in (
        ("timm/beit_base_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}),  # relative_position_bias_table
        ("timm/levit_128s", {}),  # attention_biases
    ):
        write(path, create_model(arch, 2, 64, **options).state_dict())
        with pytest.raises(WeightsError, match="was made for another image size"):
            load_weights(create_model(arch, 2, 96, **options), path)
    wider = {name: value for name, value in vit.state_dict().items()}
    wider |= {"pos_embed": torch.zeros(1, 17, 384), "norm.weight": torch.zeros(384)}
    with pytest.raises(WeightsError, match=r"'pos_embed' is \[1, 17, 384\], .*: it belongs to another model"):
        load_weights(vit, write(tmp_path / "wider.safetensors", wider))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    other = create_model("replknet_nano", 5, small_kernel=None)
    refused(write(tmp_path / "other.safetensors", other.state_dict()), "has no 'stages.0.blocks.0.large_kernel.small")


def test_a_re_parameterised_model_is_refused(tmp_path: Path) -> None:
    deploy = reparameterize(nano(1))
    refused(write(tmp_path / "deploy.pth", deploy.state_dict()), "load the training form")
    with pytest.raises(ValueError, match="save the training form"):
        save_checkpoint(tmp_path / "folder", deploy, ModelConfig("replknet_nano", 5))
    in_place = nano(1)
    in_place.reparameterize()
    with pytest.raises(ValueError, match="save the training form"):
        save_checkpoint(tmp_path / "folder", in_place, ModelConfig("replknet_nano", 5))
    of_timm = reparameterize(create_model("timm/repvit_m0_9", 5))
    with pytest.raises(ValueError, match="save the training form"):
        save_checkpoint(tmp_path / "folder", of_timm, ModelConfig("timm/repvit_m0_9", 5))
    assert not (tmp_path / "folder").exists()
    nothing_to_merge = reparameterize(create_model("timm/resnet18", 5))
    save_checkpoint(tmp_path / "folder", nothing_to_merge, ModelConfig("timm/resnet18", 5))
    load_checkpoint(tmp_path / "folder")


def test_a_model_of_other_classes_than_its_config_is_not_saved(tmp_path: Path) -> None:
    for classes in (0, 4):
        model = create_model("replknet_nano", classes)
        with pytest.raises(ValueError, match=rf"the model has {classes} classes, config\.num_classes is 5"):
            save_checkpoint(tmp_path / "folder", model, ModelConfig("replknet_nano", 5))
    assert not (tmp_path / "folder").exists()


def test_half_precision_is_widened(state: State, tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    model = nano(0)
    load_weights(model, write(tmp_path / "half.safetensors", half))
    assert same(model.state_dict(), {name: value.to(state[name].dtype) for name, value in half.items()})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_other_kinds_of_numbers_are_refused(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    state["norm.weight"] = state["norm.weight"].to(dtype)
    refused(write(tmp_path / "weights.pth", state), f"'norm.weight' is {dtype}, the model's is torch.float32")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(value: float, state: State, tmp_path: Path) -> None:
    name = "stages.2.blocks.3.pw2.bn.running_var"
    state[name][1] = value
    refused(write(tmp_path / "weights.safetensors", state), f"'{name}' holds NaN or infinity")


def test_numbers_that_the_models_type_cannot_hold_are_no_divergence(state: State, tmp_path: Path) -> None:
    name = "norm.running_var"
    state[name][1] = 1e5
    path = write(tmp_path / "weights.safetensors", state)
    with pytest.raises(WeightsError, match=rf"'{name}' has numbers beyond torch\.float16, the model's"):
        load_weights(nano(0).half(), path)
    load_weights(nano(0), path)


@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda tensor: tensor.to("meta")], ids=["sparse", "meta"])
def test_what_is_not_dense_is_refused(change: Callable[[Tensor], Tensor], state: State, tmp_path: Path) -> None:
    state["head.weight"] = change(state["head.weight"])
    refused(write(tmp_path / "weights.pth", state), "'head.weight' is sparse or has no memory")


def test_another_number_of_classes_has_its_own_message(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.pth", nano(1, num_classes=9).state_dict())
    refused(path, "head.weight has 9 classes, the model has 5", "num_classes=9")
    model = nano(0)
    head = model.head.weight.clone()
    load_weights(model, path, skip_head=True)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.running_mean, nano(1, num_classes=9).norm.running_mean)


WRAPPERS = {
    "compiled": lambda model: torch.compile(model),
    "data parallel": lambda model: nn.DataParallel(model),
    "both": lambda model: nn.DataParallel(torch.compile(model)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_runs_a_model_is_no_part_of_it(name: str, state: State, tmp_path: Path) -> None:
    """torch.compile and DataParallel: loaded into, saved without their prefixes, re-parameterised."""
    model = nano(0)
    wrapped = WRAPPERS[name](model)
    load_weights(wrapped, write(tmp_path / "weights.pth", state))
    assert same(model.state_dict(), state)
    save_checkpoint(tmp_path, wrapped, ModelConfig("replknet_nano", 5))
    assert same(load_file(tmp_path / "model.safetensors"), state)
    deploy = reparameterize(wrapped)
    assert isinstance(deploy, RepLKNet)
    torch.testing.assert_close(deploy(IMAGES), nano(1)(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_sharded_model_is_refused(state: State, tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rank", rank=0, world_size=1)
    try:
        model = nano(0)
        model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), init_device_mesh("cpu", (1,))))
        with pytest.raises(ValueError, match=r"'head\.weight' is sharded: gather the weights"):
            save_checkpoint(tmp_path / "folder", model, ModelConfig("replknet_nano", 5))
        with pytest.raises(WeightsError, match=r"'head\.weight' of the model is sharded: load the weights first"):
            load_weights(model, write(tmp_path / "weights.pth", state))
    finally:
        torch.distributed.destroy_process_group()
    assert not (tmp_path / "folder").exists()


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", create_model("replknet_nano", 3).state_dict())
    with torch.device("meta"):
        model = create_model("replknet_nano", 3)
    with pytest.raises(WeightsError, match=r'on the device "meta", without memory: model\.to_empty'):
        load_weights(model, path)
    load_weights(model.to_empty(device="cpu"), path)


def test_a_file_without_a_head_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", create_model("replknet_nano", 0).state_dict())
    with pytest.raises(WeightsError, match=r"has no 'head\.weight': it has no head, skip_head=True keeps the model's"):
        load_weights(create_model("replknet_nano", 3), path)
    load_weights(create_model("replknet_nano", 3), path, skip_head=True)
