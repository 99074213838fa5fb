"""The masked pre-training model: masked patches are not seen, and batch norms count only visible positions."""

import copy
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend

from kernels.masked_patch_loss.reference import masked_patch_loss_reference
from models import (
    MaskedBatchNorm2d,
    MaskedPretrainer,
    ModelConfig,
    RepLKNet,
    create_model,
    load_checkpoint,
    reparameterize,
    save_checkpoint,
)

OPERATORS = ("widefield.depthwise_conv2d", "widefield.masked_patch_loss")
SIZES = {"layers": (1, 1, 1, 1), "channels": (4, 8, 8, 8), "kernel_sizes": (7, 7, 5, 5), "small_kernel": 3}


def make(mask_mode: str, **options) -> MaskedPretrainer:
    torch.manual_seed(0)
    model = MaskedPretrainer(create_model("replknet_nano", 1, **SIZES), mask_mode, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0  # one batch gives running statistics under which a signal comes through
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    masks = torch.rand(3, 4, 4) < 0.5
    masks[:, 0, 0], masks[:, 1, 1] = True, False
    return torch.randn(3, 3, 64, 64), masks


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["token", "sparse"])
def test_masked_pixels_are_never_seen(mode, training, batch):
    images, masks = batch
    model = make(mode)
    model.predict(images, masks)
    model.train(training)
    hidden = masks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    others = torch.where(hidden, float("nan"), images)
    expected = copy.deepcopy(model).predict(images, masks)
    assert expected.shape == (3, 3 * 32 * 32, 2, 2)
    assert torch.equal(expected, model.predict(others, masks))
    visible = torch.where(hidden, images, images + 1)
    assert not torch.equal(expected, model.predict(visible, masks))


@pytest.mark.parametrize("norm", ["none", "window", "patch"])
@pytest.mark.parametrize("mode", ["token", "sparse"])
def test_loss_is_the_references_and_every_parameter_learns(mode, norm, batch):
    images, masks = batch
    model = make(mode, loss="l2", target_norm=norm, window=7)
    prediction = copy.deepcopy(model).predict(images, masks)
    loss = model(images, masks)
    expected = masked_patch_loss_reference(prediction.double(), images.double(), masks, "l2", norm, 7)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder.head.") != parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert (model.mask_token is not None) == (mode == "token")


@pytest.mark.parametrize("mode", ["token", "sparse"])
def test_empty_cells_learn_from_their_neighbours(mode):
    """Whole cells of the last map are masked, as in the published recipe: what is visible beside them must matter."""
    torch.manual_seed(0)
    images, masks = torch.randn(2, 3, 96, 96), torch.zeros(2, 3, 3)
    masks[:, 1, 1] = 1
    model = make(mode)
    model(images, masks).backward()
    for name, parameter in model.encoder.named_parameters():
        if name.startswith("stem.") or name.startswith("stages.0."):
            assert parameter.grad.abs().max() > 0, name
    model.eval()
    with torch.no_grad():
        middle = model.predict(images, masks)[:, :, 1, 1]
        others = model.predict(images.roll(1, 0), masks)[:, :, 1, 1]
    assert not torch.equal(middle, others)


@pytest.mark.parametrize("mode", ["token", "sparse"])
def test_learned_vectors_begin_small(mode):
    """SimMIM's: a normal distribution of deviation 0.02, beside which the stem's outputs are seen."""
    model = MaskedPretrainer(create_model("replknet_nano", 1), mode)
    token = model.mask_token if mode == "token" else model.fill.token
    assert 0.01 < token.std() < 0.03


def test_token_stands_where_the_stem_is_masked(batch, monkeypatch):
    images, masks = batch
    model = make("token").eval()
    seen = []
    for name in ("forward_stages", "forward_stem"):
        real = getattr(model.encoder, name)
        monkeypatch.setattr(model.encoder, name, lambda x, real=real: seen.insert(0, x) or real(x))
    model.predict(images, masks)
    hidden = masks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    assert torch.equal(seen[1], torch.where(hidden, 0.0, images))
    hidden = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)  # [B,16,16]: stride 4
    where = seen[0].permute(0, 2, 3, 1)
    assert torch.equal(where[hidden], model.mask_token.expand(int(hidden.sum()), -1))
    assert not (where[~hidden] == model.mask_token).all(1).any()


@pytest.mark.parametrize("training", [True, False])
def test_sparse_layers_are_zero_where_masked(training, batch):
    """After every convolution and batch norm, at strides 2 to 32; patches of 16 px share a position at stride 32."""
    images, masks = batch
    model = make("sparse").train(training)
    maps = []
    for module in model.encoder.modules():
        if isinstance(module, MaskedBatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: maps.append(output))
    model.predict(images, masks)
    assert {tensor.shape[2] for tensor in maps} == {32, 16, 8, 4, 2}
    visible = (~masks).float()[:, None]
    for tensor in maps:
        side = tensor.shape[2]
        at = F.interpolate(visible, (side, side)) if side >= 4 else F.adaptive_max_pool2d(visible, side)
        assert torch.equal(tensor, torch.where(at > 0, tensor, 0))
        assert (tensor != 0).any()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_batch_norm_is_that_of_the_visible_positions_in_a_row(dtype, momentum):
    from models.masked import Visible

    torch.manual_seed(0)
    x, visible = torch.randn(2, 5, 8, 8).to(dtype), torch.rand(2, 1, 4, 4) < 0.4
    masked, plain = MaskedBatchNorm2d(5, momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
    masked.visible = Visible()
    if dtype == torch.float64:
        masked, plain = masked.double(), plain.double()
    at = visible.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0]  # [2,8,8]
    for training in (True, False):
        masked.train(training)
        plain.train(training)
        masked.visible.patches = visible
        output = masked(x)
        masked.visible.patches = None
        rows = x.permute(0, 2, 3, 1)[at]  # [n,5]
        expected = plain(rows[:, :, None, None].to(plain.weight.dtype))[:, :, 0, 0]
        close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(output.permute(0, 2, 3, 1)[at], expected.to(dtype), **close)
        assert output.dtype == dtype
        assert not output.permute(0, 2, 3, 1)[~at].any()
    assert masked.num_batches_tracked == plain.num_batches_tracked == 1
    torch.testing.assert_close(masked.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked.running_var, plain.running_var, rtol=1e-5, atol=1e-6)
    wide = x.to(plain.weight.dtype)
    torch.testing.assert_close(masked.eval()(wide), plain.eval()(wide), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_of_its_own_is_a_plain_one():
    x = torch.randn(2, 5, 8, 8)
    assert torch.equal(MaskedBatchNorm2d(5)(x), nn.BatchNorm2d(5)(x))


def test_activation_checkpointing_is_refused_in_sparse_mode(batch):
    """The blocks that the backward pass computes again would see no mask."""
    model = make("sparse")
    model.encoder.set_grad_checkpointing()
    with torch.no_grad():
        model.predict(*batch)
    with pytest.raises(ValueError, match=r"sparse mode needs encoder\.set_grad_checkpointing\(False\)"):
        model.predict(*batch)


def test_a_batch_with_nothing_visible_is_finite():
    model = make("sparse")
    loss = model(torch.randn(2, 3, 32, 32), torch.ones(2, 1, 1))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_sparse_encoder_saves_as_a_plain_one(tmp_path, batch):
    model = MaskedPretrainer(create_model("replknet_nano", 1), "sparse")
    images, masks = batch
    model(images, masks)
    save_checkpoint(tmp_path, model.encoder, ModelConfig("replknet_nano", 1))
    plain, _ = load_checkpoint(tmp_path)
    assert not any(isinstance(module, MaskedBatchNorm2d) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain.forward_features(images), model.encoder.eval().forward_features(images))


def test_an_encoder_may_have_been_in_another_pretrainer(batch):
    images, masks = batch
    encoder = create_model("replknet_nano", 1)
    first, second = (MaskedPretrainer(encoder, "sparse") for _ in range(2))
    assert first.visible is not second.visible
    assert encoder.norm.visible is second.visible
    second(images, masks)


def test_batch_norms_that_cannot_count_visible_positions_are_named():
    encoder = torch.nn.SyncBatchNorm.convert_sync_batchnorm(create_model("replknet_nano", 1))
    with pytest.raises(ValueError, match=r"the encoder has SyncBatchNorm: sparse mode needs nn\.BatchNorm2d"):
        MaskedPretrainer(encoder, "sparse")


def test_a_step_that_fails_leaves_no_mask(batch, monkeypatch):
    model = make("sparse")
    monkeypatch.setattr(model.encoder, "forward_features", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        model.predict(*batch)
    assert model.visible.patches is None


def test_a_copy_has_masks_of_its_own(batch):
    model = make("sparse").eval()
    other = copy.deepcopy(model)
    assert other.visible is not model.visible
    assert all(m.visible is other.visible for m in other.modules() if isinstance(m, MaskedBatchNorm2d))
    assert torch.equal(model.predict(*batch), other.predict(*batch))


@pytest.mark.parametrize(
    ("norm", "level"), [("none", 0.0), *((norm, level) for norm in ("window", "patch") for level in (0.0, 1e7))]
)
def test_reconstruction_undoes_the_normalisation(norm, level, batch, monkeypatch):
    """A model that predicts its target exactly gives the image back; a texture on a bright ground too."""
    images, masks = batch[0].double(), batch[1]
    model = make("token", target_norm=norm, window=7).eval()
    target = images
    if norm == "patch":
        squares = target.reshape(3, 3, 4, 16, 4, 16)
        var, mean = torch.var_mean(squares, dim=(1, 3, 5), keepdim=True)
        target = ((squares - mean) / (var + 1e-6).sqrt()).view_as(target)
    elif norm == "window":
        windows = F.pad(target, (3, 3, 3, 3), value=torch.nan).unfold(2, 7, 1).unfold(3, 7, 1)  # [B,C,H,W,7,7]
        count = windows.isfinite().sum((-2, -1))
        mean = windows.nanmean((-2, -1))
        var = (windows - mean[..., None, None]).square().nansum((-2, -1)) / (count - 1)
        target = (target - mean) / (var + 1e-6).sqrt()
    monkeypatch.setattr(model, "predict", lambda *_: F.pixel_unshuffle(target.float(), 32))
    answer = model.reconstruct(images + level, masks)
    torch.testing.assert_close(answer, images + level, rtol=0, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize(
    ("size", "mask", "message"),
    [
        ((40, 64), (5, 8), "images of 40 x 64 pixels"),
        ((64, 40), (8, 5), "images of 64 x 40 pixels"),
        ((64, 96), (5, 8), r"mask \[5,8\] on images of 64 x 96"),
        ((64, 64), (32, 32), r"mask \[32,32\] on images of 64 x 64"),
        ((64, 64), (3, 3), r"mask \[3,3\]"),
        ((64, 64), (4, 2), r"mask \[4,2\]"),
    ],
)
def test_sizes_that_do_not_fit_are_named(size, mask, message):
    with pytest.raises(ValueError, match=message):
        make("token").predict(torch.zeros(1, 3, *size), torch.ones(1, *mask))


@pytest.mark.parametrize(
    ("image", "mask"), [((3, 64, 64), (1, 4, 4)), ((1, 3, 64, 64), (4, 4)), ((1, 3, 64, 64), (1, 0, 4))]
)
def test_shapes_that_do_not_fit_are_named(image, mask):
    with pytest.raises(ValueError, match=r"images have shape .*\[B,3,H,W\] and \[B,h',w'\] are expected"):
        make("token").predict(torch.zeros(image), torch.ones(mask))


def test_sparse_patches_lie_on_the_last_maps_grid():
    model, images = make("sparse"), torch.zeros(1, 3, 96, 96)
    with pytest.raises(ValueError, match=r"patches of 12 pixels: sparse mode takes 4, 8, 16 or a multiple of 32"):
        model.predict(images, torch.ones(1, 8, 8))
    for patches in (24, 12, 6, 3, 1):
        model.predict(images, torch.ones(1, patches, patches))
    make("token").predict(images, torch.ones(1, 8, 8))


def test_unknown_mask_mode_is_named():
    with pytest.raises(ValueError, match="mask_mode 'dense'"):
        make("dense")


@pytest.mark.parametrize("mode", ["token", "sparse"])
def test_compiles_without_a_graph_break_and_under_autocast(mode, batch):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    model = make(mode)
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    expected = model(*batch)
    loss = compiled(*batch)
    (graph,) = graphs
    called = [name for name in OPERATORS for node in graph.graph.nodes if name in str(node.target)]
    blocks = 4 if mode == "token" else 5  # the last is FillEmpty's
    assert called == ["widefield.depthwise_conv2d"] * 2 * blocks + ["widefield.masked_patch_loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0)


def test_norms_that_were_converted_later_are_refused() -> None:
    """They would see masked positions."""
    model = MaskedPretrainer(create_model("replknet_nano", 1), "sparse")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(ValueError, match=r"the encoder has SyncBatchNorm: sparse mode needs nn\.BatchNorm2d"):
        converted.eval()(torch.randn(1, 3, 64, 64), torch.ones(1, 2, 2))


def test_images_of_other_channels() -> None:
    model = MaskedPretrainer(create_model("replknet_nano", 1, in_channels=1))
    images, mask = torch.randn(2, 1, 64, 64), torch.ones(2, 2, 2)
    assert model.predict(images, mask).shape == (2, 1024, 2, 2)
    assert model(images, mask).isfinite()


def test_encoders_that_cannot_be_trained_are_refused() -> None:
    three = RepLKNet((1, 1, 1), (8, 8, 8), (3, 3, 3), 3, num_classes=1)
    for encoder in (three, reparameterize(create_model("replknet_nano", 1))):
        with pytest.raises(ValueError, match="other than 4 stages, or is in deploy form: its training form is needed"):
            MaskedPretrainer(encoder)
    with pytest.raises(ValueError, match="the encoder is a ResNet: a RepLKNet is needed"):
        MaskedPretrainer(create_model("timm/resnet18", 1))  # type: ignore[arg-type]
    for wrap in (nn.DataParallel, torch.compile):  # the pretrainer does not call the encoder itself
        with pytest.raises(ValueError, match=r"a RepLKNet is needed .*; compile or wrap the MaskedPretrainer"):
            MaskedPretrainer(wrap(create_model("replknet_nano", 1)))
