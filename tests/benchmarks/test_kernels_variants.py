"""The strips, the fused activation and tf32 on a faked GPU; and the tuner within its time."""

import json
import os
from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import tune, variants
from benchmarks.kernels.candidates import NATIVE, OURS
from benchmarks.kernels.layers import Layer
from kernels.depthwise_conv2d import dispatch, tile_files, toeplitz
from kernels.depthwise_conv2d.pytorch import convolution
from kernels.depthwise_conv2d.whole_image import WholeImageTile

SMALL = [Layer(2, 4, size, kernel) for size, kernel in ((9, 7), (7, 9), (6, 11), (5, 9))]


@pytest.mark.usefixtures("fake_gpu")
def test_every_variant_is_right_each_way(monkeypatch):
    monkeypatch.setattr(variants, "replknet_31b", lambda batch, dtype="bfloat16": SMALL)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    forms = {6: ((False, 16, 4), (True, 64, 4)), 5: ((True, 32, 8),)}
    monkeypatch.setattr(variants, "SMALL_IMAGES", forms)
    went = []

    def run_forward(algorithm, input, weight, bias, activation, precision):
        went.append(algorithm)
        return convolution(input, weight)

    monkeypatch.setattr(dispatch, "run_forward", run_forward)
    small, tiles = [], []
    for variant in variants.forms():
        went.clear()
        kept = {"small image": small, "tile": tiles}[variant.name]
        kept.append((variants.measure_variant(variant, "cpu"), set(went)))
    assert [used for _, used in small] == [{"toeplitz", *(WholeImageTile(*form) for form in forms[n])} for n in (6, 5)]
    names = {"whole image", "whole image 16x4", "packed image 64x4"}
    assert small[0][0]["ways"].keys() == {f"{OURS} {name}" for name in names}
    assert len(tiles) == 7
    for row, used in tiles:
        assert row["ways"].keys() == {f"{OURS} {name}" for name in ("past L1", "through L1", "by rule")}
        one, other = used - {"toeplitz"}
        assert one == replace(other, cached=one.cached)
        assert one.cached != other.cached
    others = [variants.measure_variant(variant, "cpu") for variant in variants.variants()]
    rows = [row for row, _ in small + tiles] + others
    of_a_stage = ["strip", "strip", "bias and gelu", "tf32x3", "tf32"]
    assert [row["variant"] for row in others] == of_a_stage * 2
    for row in rows:
        assert all(way["error"] <= 1 for way in row["ways"].values()), row
        assert row["fastest"] in row["ways"]
        assert "us" in variants.line(row)
    for row in others:
        assert {NATIVE, f"{NATIVE} channels_last"} < row["ways"].keys()
    assert [row["filter"] for row in others[:3]] == [[7, 5], [5, 7], [7, 7]]
    assert others[2]["ways"].keys() >= {f"{OURS} fused", f"{OURS} and gelu"}
    json.dumps(rows, default=str)


def test_a_shipped_tile_is_measured_and_not_the_users_own(monkeypatch, tmp_path):
    """In the types and at the batches that it serves; the rule's where there is none."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    seen = []
    monkeypatch.setattr(dispatch, "run_forward", lambda tile, *_: seen.append(tile))
    table = tile_files.read(tile_files.TABLE)
    shipped = toeplitz.Tile(**table["toeplitz sm_90 bfloat16 64x128x56x56 31x31"])
    for batch, dtype in ((64, torch.bfloat16), (256, torch.float16), (8, torch.bfloat16)):
        input, weight = torch.empty(batch, 128, 56, 56, dtype=dtype), torch.empty(128, 1, 31, 31, dtype=dtype)
        variants.by_tile(True)(input, weight)
    assert seen[:2] == [replace(shipped, cached=True)] * 2
    assert seen[2] == replace(toeplitz.choose_tile(8, 56, 56, 31, 2), cached=True) != seen[0]


@pytest.mark.usefixtures("fake_gpu")
def test_a_wrong_answer_of_ours_makes_the_row_wrong_and_a_peers_does_not():
    def wrong(*arguments):
        return convolution(*arguments) + 1

    def make(ours, native):
        ways = {OURS: ours, NATIVE: native}
        return variants.measure_variant(variants.Variant("strip", SMALL[0], (7, 5), ways), "cpu")

    row = make(wrong, convolution)
    assert "times the bound" in row["wrong"]
    assert "fastest" not in row
    assert "WRONG" in variants.line(row)
    assert make(convolution, wrong)["fastest"] == OURS


@pytest.mark.usefixtures("fake_gpu")
def test_a_change_of_layout_is_in_nobodys_time():
    """Each call is given the image that was laid out before: as many of them as sets and layouts, and no more."""
    given = []

    def native(input, weight):
        given.append(input)
        return convolution(input, weight)

    ways = {OURS: convolution, NATIVE: native}
    sets = variants.sets_that_exceed_the_cache(SMALL[0].bytes)
    variants.measure_variant(variants.Variant("strip", SMALL[0], (7, 5), ways), "cpu")
    assert len(given) > 2 * sets
    assert len({input.data_ptr() for input in given}) == 2 * sets
    assert {input.is_contiguous(memory_format=torch.channels_last) for input in given} == {True, False}


@pytest.fixture
def budgets(monkeypatch):
    """The seconds that the tuner was given for each operation, with the kernel sizes."""
    seen = []

    def convolve(input, weight):
        seen.append((weight.shape[2], float(os.environ["WIDEFIELD_AUTOTUNE_SECONDS"])))
        return convolution(input, weight)

    monkeypatch.setattr(tune, "depthwise_conv2d", convolve)
    return seen


def test_the_tuners_time_is_shared_out(budgets, tmp_path, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_TILES", "")
    (tmp_path / "tiles.json").write_text('{"of": "an older run"}')
    assert tune.tune(SMALL[:2], "cpu", 30.0, tmp_path / "tiles.json") == ({}, [])
    assert budgets == [(7, 5.0), (5, 5.0), (9, 5.0), (5, 5.0)]
    budgets.clear()
    tune.tune(SMALL, "cpu", 4.0, tmp_path / "tiles.json")
    assert budgets[0] == (7, tune.LEAST_SECONDS)
    budgets.clear()
    tune.tune(SMALL, "cpu", -1.0, tmp_path / "tiles.json")
    assert budgets == []
    assert "WIDEFIELD_AUTOTUNE" not in os.environ
    assert os.environ["WIDEFIELD_TILES"] == str(tmp_path / "tiles.json")
    assert len(tune.layers()) == 12
    assert dispatch.TOEPLITZ_TAPS <= 25  # the 5 x 5 is tuned on the tensor cores
    assert torch.bfloat16 in {layer.torch_dtype for layer in tune.layers()}


def test_a_layer_that_the_tuner_cannot_measure_does_not_lose_the_others(budgets, tmp_path, monkeypatch):
    """Nor what is measured afterwards: the benchmark ended with it, before its first row."""
    measured = tune.depthwise_conv2d

    def convolve(input, weight):
        if weight.shape[2] == SMALL[0].kernel:
            raise AssertionError("of the compiler\nmore")
        return measured(input, weight)

    monkeypatch.setenv("WIDEFIELD_TILES", "")
    monkeypatch.setattr(tune, "depthwise_conv2d", convolve)
    _, failures = tune.tune(SMALL[:2], "cpu", 30.0, tmp_path / "tiles.json")
    assert failures == [f"{SMALL[0]}: AssertionError: of the compiler"]
    assert budgets == [(9, 5.0), (5, 5.0)]
    assert "WIDEFIELD_AUTOTUNE" not in os.environ
