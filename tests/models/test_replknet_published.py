"""The published architectures: exact parameter and multiply-accumulate counts, and the published keys."""

import pytest
import torch
from torch import nn

from models import ARCHITECTURES, RepLKNet, count_macs, count_parameters, create_model

# arch: parameters in training form, in the published deploy form (branches merged, every other batch norm kept)
PARAMETERS = {
    "replknet_31b": (79_864_168, 79_527_272),
    "replknet_31l": (172_671_016, 172_165_672),
    "replknet_xl": (335_435_752, 335_399_656),
    "replknet_small": (25_409_032, 25_285_384),  # our own
    "replknet_nano": (1_443_912, 1_426_888),
}


def on_meta(arch: str, **kwargs: object) -> RepLKNet:
    with torch.device("meta"):
        return create_model(arch, **kwargs)


def folded_parameters(arch: str, num_classes: int = 1000) -> int:
    """Every convolution has weights and a bias, the head too, and there is nothing else."""
    a = ARCHITECTURES[arch]
    c0 = a.channels[0]
    total = (3 * 9 * c0 + c0) + (9 * c0 + c0) + (c0 * c0 + c0) + (9 * c0 + c0)
    for c, depth, k in zip(a.channels, a.layers, a.kernel_sizes, strict=True):
        wide, hidden = int(c * a.dw_ratio), 4 * c
        block = (c * wide + wide) + (wide * k * k + wide) + (wide * c + c)
        total += depth * (block + (c * hidden + hidden) + (hidden * c + c))
    for c, out in zip(a.channels, a.channels[1:], strict=False):
        total += (c * out + out) + (9 * out + out)
    return total + a.channels[-1] * num_classes + num_classes


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameters_are_the_published_ones(arch: str) -> None:
    model = on_meta(arch)
    assert count_parameters(model) == PARAMETERS[arch][0]
    model.merge_branches()
    assert count_parameters(model) == PARAMETERS[arch][1]
    assert "stages.3.blocks.0.large_kernel.lkb_reparam.bias" in model.state_dict()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_with_every_batch_norm_folded(arch: str) -> None:
    model = on_meta(arch)
    model.reparameterize()
    assert count_parameters(model) == folded_parameters(arch)


@pytest.mark.parametrize(
    ("arch", "image_size", "training", "deploy"),
    [
        ("replknet_31b", 224, 15.431, 15.354),
        ("replknet_31b", 384, 45.347, 45.119),
        ("replknet_31l", 384, 96.332, 95.989),
        ("replknet_xl", 320, 128.730, 128.730),
    ],
)
def test_multiply_accumulates_are_the_published_ones(
    arch: str, image_size: int, training: float, deploy: float
) -> None:
    """Published: 15.3G@224, 45.1G@384, 96.0G@384, 128.7G@320, all of the deploy form."""
    model = on_meta(arch).train()
    assert round(count_macs(model, image_size) / 1e9, 3) == training
    assert model.training
    model.merge_branches()
    assert round(count_macs(model, image_size) / 1e9, 3) == deploy
    model.reparameterize()
    assert round(count_macs(model, image_size) / 1e9, 3) == deploy


def test_multiply_accumulates_of_a_model_that_is_wrapped() -> None:
    model = create_model("replknet_nano")
    assert count_macs(nn.DataParallel(model), 64) == count_macs(model, 64)


def test_a_last_map_of_one_position_is_counted_too() -> None:
    """A batch norm in training would refuse it."""
    grey, colour = (count_macs(on_meta("replknet_nano", in_channels=c).train(), 32, c) for c in (1, 3))
    assert colour - grey == 2 * 9 * 32 * 16 * 16


@pytest.mark.parametrize(("arch", "small_branch"), [("replknet_31b", True), ("replknet_xl", False)])
def test_keys_are_the_published_ones(arch: str, small_branch: bool) -> None:
    def batch_norm(name: str) -> set[str]:
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{part}" for part in parts}

    def conv_bn(name: str) -> set[str]:
        return {f"{name}.conv.weight"} | batch_norm(f"{name}.bn")

    expected = {"head.weight", "head.bias"} | batch_norm("norm")
    for i in range(4):
        expected |= conv_bn(f"stem.{i}")
    for i, depth in enumerate((2, 2, 18, 2)):
        for j in range(depth):
            block, ffn = f"stages.{i}.blocks.{2 * j}", f"stages.{i}.blocks.{2 * j + 1}"
            expected |= batch_norm(f"{block}.prelkb_bn") | batch_norm(f"{ffn}.preffn_bn")
            expected |= conv_bn(f"{block}.large_kernel.lkb_origin")
            if small_branch:
                expected |= conv_bn(f"{block}.large_kernel.small_conv")
            for name in (block, ffn):
                expected |= conv_bn(f"{name}.pw1") | conv_bn(f"{name}.pw2")
    for i in range(3):
        expected |= conv_bn(f"transitions.{i}.0") | conv_bn(f"transitions.{i}.1")
    assert set(on_meta(arch).state_dict()) == expected


def test_drop_path_grows_linearly_and_a_pair_shares_its_rate() -> None:
    model = on_meta("replknet_31b", drop_path_rate=0.5)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert len(rates) == 48
    assert rates[0::2] == rates[1::2]
    assert rates[0::2] == pytest.approx([0.5 * i / 23 for i in range(24)])


def test_drop_path_keeps_the_expectation_and_drops_whole_samples() -> None:
    from models.layers import DropPath

    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 3, 3))
    per_sample = out.flatten(1)
    assert ((per_sample == 0).all(1) | torch.isclose(per_sample, torch.tensor(4 / 3)).all(1)).all()
    assert (per_sample[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert layer(out.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.eval()(out), out)


@pytest.mark.parametrize(("size", "features"), [((64, 64), (2, 2)), ((33, 47), (2, 2)), ((224, 96), (7, 3))])
def test_any_image_size_runs(size: tuple[int, int], features: tuple[int, int]) -> None:
    model = create_model("replknet_nano", num_classes=7).eval()
    with torch.inference_mode():
        assert model.forward_features(torch.randn(2, 3, *size)).shape == (2, 256, *features)
        assert model(torch.randn(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel_sizes": (13, 12, 13, 7)}, "kernel size 12 is even"),
        ({"kernel_sizes": (13, 13, -1, 7)}, "1 is the least"),
        ({"small_kernel": 4}, "kernel size 4 is even"),
        ({"small_kernel": 9}, "small_kernel 9 is larger"),
        ({"small_kernel": -3}, "kernel size -3: 1 is the least"),
        ({"small_kernel": 0}, "small_kernel=None"),
        ({"dw_ratio": 0.01}, "dw_ratio 0.01: at least one of 32 channels"),
        ({"ffn_ratio": float("nan")}, "ffn_ratio nan"),
        ({"in_channels": 0}, "in_channels 0: at least 1"),
        ({"layers": (), "channels": (), "kernel_sizes": ()}, "one entry per stage"),
        ({"layers": (1, 1, 2)}, "one entry per stage"),
        ({"channels": (0, 1, 2, 3)}, "1 is the least"),
        ({"num_classes": -1}, "num_classes -1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate -0.1"),
    ],
)
def test_impossible_sizes_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("replknet_nano", **kwargs)


def test_sizes_of_ones_own() -> None:
    model = on_meta("replknet_nano", ffn_ratio=2.5, small_kernel=7)
    assert model.stages[0].blocks[1].pw1.conv.out_channels == 80
    assert model.stages[3].blocks[0].large_kernel.small_conv.conv.kernel_size == (7, 7)


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match=r"'replknet_s' is unknown: choose one of replknet_31b"):
        create_model("replknet_s")
