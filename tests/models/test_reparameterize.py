"""Deploy form against training form, with batch norms that are nothing like the identity."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from models import ARCHITECTURES, RepLKNet, create_model, reparameterize
from models.layers import ConvBN, ReparamLargeKernelConv
from models.reparameterize import fold_after, fold_before

WIDTHS = (8, 12, 16, 20)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine parameters that a fold cannot miss: some scales negative, one zero, small variances."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=generator))
            module.running_var.copy_(torch.rand(n, generator=generator) * 2 + 1e-3)
            if module.weight is not None:
                scale = torch.randn(n, generator=generator)
                scale[0] = 0
                module.weight.data.copy_(scale)
                module.bias.data.copy_(torch.randn(n, generator=generator))
            module.eps = 1e-3
    return model


def reduced(arch: str, **kwargs: object) -> RepLKNet:
    torch.manual_seed(0)
    sizes = {"layers": (1, 1, 2, 1), "channels": WIDTHS, "num_classes": 11, "drop_path_rate": 0.3}
    return randomise(create_model(arch, **{**sizes, **kwargs}))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [(64, 64), (37, 51)])
def test_deploy_form_equals_training_form(
    arch: str, dtype: torch.dtype, tolerance: float, size: tuple[int, int]
) -> None:
    model = reduced(arch).to(dtype).eval()
    images = torch.randn(3, 3, *size, dtype=dtype)
    deploy = reparameterize(model)
    with torch.inference_mode():
        expected = model(images)
        assert expected.std() > 1e-3, "the comparison would be of nothing"
        torch.testing.assert_close(deploy(images), expected, rtol=tolerance, atol=tolerance)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(deploy(channels_last), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("arch", ["replknet_nano", "replknet_xl"])
def test_sync_batch_norm_is_folded_too(arch: str) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(reduced(arch)).double().eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    deploy = reparameterize(model)
    assert not [name for name, module in deploy.named_modules() if isinstance(module, _BatchNorm)]
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(deploy(images), model(images), rtol=1e-10, atol=1e-10)


def test_no_batch_norm_is_left_and_every_convolution_has_a_bias() -> None:
    deploy = reparameterize(reduced("replknet_31b"))
    assert not [name for name, module in deploy.named_modules() if isinstance(module, _BatchNorm)]
    assert all(module.bias is not None for module in deploy.modules() if isinstance(module, nn.Conv2d))
    assert not [name for name in deploy.state_dict() if "lkb_origin" in name or "small_conv" in name]
    assert not deploy.training
    assert not any(parameter.requires_grad for parameter in deploy.parameters())


def test_the_large_kernel_goes_through_the_operator_with_relu_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    import models.layers as layers

    calls = []
    operator = layers.depthwise_conv2d

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str) -> torch.Tensor:
        calls.append((tuple(weight.shape), bias is not None, activation))
        return operator(x, weight, bias, activation)

    monkeypatch.setattr(layers, "depthwise_conv2d", spy)
    deploy = reparameterize(reduced("replknet_xl"))
    deploy(torch.randn(1, 3, 32, 32))
    sizes = [(12, 27), (18, 27), (24, 27), (24, 27), (30, 13)]  # dw_ratio 1.5
    assert calls == [((c, 1, k, k), True, "relu") for c, k in sizes]


def test_the_original_is_untouched_and_its_mode_does_not_matter() -> None:
    model = reduced("replknet_nano").train()
    before = copy.deepcopy(model.state_dict())
    from_train = reparameterize(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    from_eval = reparameterize(model.eval())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(from_train(images), from_eval(images))


def test_reparameterising_twice_changes_nothing() -> None:
    once = reparameterize(reduced("replknet_nano"))
    twice = reparameterize(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


def test_published_deploy_form_equals_training_form() -> None:
    model = reduced("replknet_31b").double().eval()
    merged = copy.deepcopy(model)
    merged.merge_branches()
    assert any(isinstance(module, _BatchNorm) for module in merged.modules())
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(merged(images), model(images), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(reparameterize(merged)(images), model(images), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(merged.forward_features(images), model.forward_features(images))


def test_timm_reparameterises_it() -> None:
    """timm converts the children one by one, so only the final norm, which belongs to no block, stays."""
    from timm.utils.model import reparameterize_model

    model = reduced("replknet_31b").double().eval()
    deploy = reparameterize_model(model)
    assert [name for name, module in deploy.named_modules() if isinstance(module, _BatchNorm)] == ["norm"]
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(deploy(images), model(images), rtol=1e-10, atol=1e-10)


def test_trace_bakes_in_no_batch_size() -> None:
    deploy = reparameterize(reduced("replknet_nano"))
    with torch.inference_mode():
        traced = torch.jit.trace(deploy, torch.randn(2, 3, 48, 48), check_trace=False)
        for batch in (1, 5):
            images = torch.randn(batch, 3, 48, 48)
            torch.testing.assert_close(traced(images), deploy(images), rtol=1e-4, atol=1e-4)
    graph = str(traced.inlined_graph)
    assert "widefield::depthwise_conv2d" in graph
    assert "batch_norm" not in graph


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_single_fold_is_exact(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    conv = nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=bias).double()
    bn = randomise(nn.BatchNorm2d(4, affine=affine)).double().eval()
    expected = bn(conv(images))
    fold_after(conv, bn)
    torch.testing.assert_close(conv(images), expected, rtol=1e-12, atol=1e-12)

    conv = nn.Conv2d(6, 4, 1, bias=bias).double()
    bn = randomise(nn.BatchNorm2d(6, affine=affine)).double().eval()
    expected = conv(bn(images))
    fold_before(bn, conv)
    torch.testing.assert_close(conv(images), expected, rtol=1e-12, atol=1e-12)


def test_half_precision_is_folded_in_float64_and_rounded_once() -> None:
    model = reduced("replknet_nano")
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact = reparameterize(half.double())
    for name, value in reparameterize(half.bfloat16()).state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, exact.state_dict()[name].bfloat16()), name


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 1, groups=4)]
)
def test_what_cannot_be_folded_exactly_is_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="cannot be folded"):
        fold_before(nn.BatchNorm2d(4), conv)


def test_batch_norm_without_statistics_is_refused() -> None:
    layer = ConvBN(4, 4)
    layer.bn = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="no running statistics"):
        layer.reparameterize()


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no reparameterize"):
        reparameterize(nn.Linear(2, 2))


def test_the_small_kernel_is_centred() -> None:
    layer = ReparamLargeKernelConv(1, 7, 3).double().eval()
    with torch.no_grad():
        layer.lkb_origin.conv.weight.zero_()
        layer.small_conv.conv.weight.fill_(1)
    layer.reparameterize()
    taps = layer.lkb_reparam.weight[0, 0].nonzero().tolist()
    assert taps == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]


def changed(change: Callable[[RepLKNet], None]) -> RepLKNet:
    model = reduced("replknet_31b")
    change(model)
    return model.double().eval()


def pre_norms(model: RepLKNet, norm: Callable[[int], nn.Module]) -> None:
    for module in model.modules():
        for name in ("prelkb_bn", "preffn_bn"):
            if hasattr(module, name):
                setattr(module, name, norm(getattr(module, name).num_features))


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def scaled_branches(model: RepLKNet) -> None:
    for module in model.modules():
        if hasattr(module, "drop_path"):
            module.drop_path = Scale()


def frozen(model: RepLKNet) -> None:
    """Freeze the batch norms as timm's freeze_batch_norm_2d does."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = FrozenBatchNorm2d(child.num_features, child.eps)
                norm.load_state_dict(child.state_dict(), strict=False)
                setattr(module, name, norm)


def parametrised(model: RepLKNet) -> None:
    weight_norm(model.head)
    spectral_norm(model.stages[0].blocks[1].pw1.conv)
    weight_norm(model.stages[0].blocks[0].large_kernel.lkb_origin.conv)


def hooked(model: RepLKNet) -> None:
    """Modules that are not folded, the latter of another class than in the copy."""
    weight_norm(model.head)
    for module in (model.stages[0], model.head):
        module.register_forward_hook(lambda module, inputs, output: 2 * output)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda model: pre_norms(model, lambda width: nn.GroupNorm(4, width)), scaled_branches),
        *(frozen, parametrised, hooked),
    ],
    ids=["norms", "drop_path", "frozen", "parametrised", "hooked"],
)
def test_what_somebody_changed_is_kept(change: Callable[[RepLKNet], None]) -> None:
    model = changed(change)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(images)
    deploy = reparameterize(model)
    torch.testing.assert_close(deploy(images), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert not any("Parametrized" in type(module).__name__ for module in deploy.modules()), "none could be pickled"


class Adapted(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adapted(model: RepLKNet) -> None:
    block = model.stages[0].blocks[1]
    block.pw1.conv = Adapted(block.pw1.conv.in_channels, block.pw1.conv.out_channels, 1, bias=False)


def wrapped(model: RepLKNet) -> None:
    block = model.stages[0].blocks[1]
    block.pw1.conv = nn.Sequential(block.pw1.conv, nn.ReLU())


def group_norm_after_a_large_kernel(model: RepLKNet) -> None:
    branch = model.stages[0].blocks[0].large_kernel.lkb_origin
    branch.bn = nn.GroupNorm(1, branch.bn.num_features)


def pruned(model: RepLKNet) -> None:
    prune.l1_unstructured(model.stages[0].blocks[0].large_kernel.lkb_origin.conv, "weight", 0.3)


def weight_by_a_hook(model: RepLKNet) -> None:
    nn.utils.spectral_norm(model.head)


def hook_on_a_norm(model: RepLKNet) -> None:
    model.stages[0].blocks[1].preffn_bn.register_forward_hook(lambda module, inputs, output: 2 * output)


def hook_before_a_branch(model: RepLKNet) -> None:
    model.stages[0].blocks[0].large_kernel.small_conv.register_forward_pre_hook(lambda module, inputs: None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (hook_on_a_norm, r"stages\.0\.blocks\.1\.preffn_bn has a forward hook and is folded .*: remove the hook first"),
        (hook_before_a_branch, r"stages\.0\.blocks\.0\.large_kernel\.small_conv has a forward hook"),
        (pruned, r"stages\.0\.blocks\.0\.large_kernel\.lkb_origin\.conv\.weight is computed by a hook .*prune\.remove"),
        (weight_by_a_hook, r"head\.weight is computed by a hook"),
        (adapted, "Adapted has a forward of its own and cannot be folded"),
        (wrapped, "Sequential has a forward of its own"),
        (group_norm_after_a_large_kernel, "GroupNorm after a large kernel cannot be folded"),
    ],
)
def test_what_cannot_be_merged_is_named(change: Callable[[RepLKNet], None], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        reparameterize(changed(change))
