"""Goals are read from the rows that they speak of, and nothing else; the picture shows the rows that have a speed."""

from dataclasses import asdict

import pytest

from benchmarks.kernels import goals, roofline
from benchmarks.kernels.candidates import OURS
from benchmarks.kernels.layers import PASSES, replknet_31b
from benchmarks.timing import Timing

MS = (0.2, 0.05, 0.01, 0.007)


def rows(batch=64, as_read=False, **figures):
    made = []
    for stage, (layer, ms) in enumerate(zip(replknet_31b(batch), MS, strict=True)):  # the first is the worst
        timing = Timing(ms, ms, ms, 1)
        for which in PASSES:
            row = asdict(layer) | {"pass": which, "candidates": {OURS: {"ms": asdict(timing) if as_read else timing}}}
            shares = {"speedup_over_native": 20.0, "speedup_over_best_cudnn": 12.0, "speedup_over_best_peer": 0.9}
            made.append(row | {name: value + stage for name, value in shares.items()} | figures)
    return made


def verdicts(layers, losses=()):
    return {row["goal"]: (row["measured"], row["verdict"]) for row in goals.goal_rows(layers, list(losses))}


@pytest.mark.parametrize("as_read", [False, True])
def test_verdicts(as_read):
    losses = [
        {"norm": "none", "batch": 128, "of_copy": 0.95, "speedup_over_eager": 6.0},
        {"norm": "none", "batch": 128, "of_copy": 0.75, "speedup_over_eager": 4.0},
        {"norm": "patch", "batch": 128, "of_copy": 0.1, "speedup_over_eager": 1.0},
        {"norm": "none", "batch": 32, "of_copy": 0.1, "speedup_over_eager": 1.0},
    ]
    found = verdicts(rows(as_read=as_read) + rows(1, as_read), losses)
    assert found["forward, stage 1"] == (200, "met")
    assert found["forward, stage 3"] == (10, "met")
    assert found["forward, stage 4"] == (7, "NOT MET")
    assert found["forward, all 24 K x K layers of RepLKNet-31B"] == (0.694, "met")
    assert found["forward over PyTorch native NCHW, worst stage"] == (20, "met")
    assert found["forward over the best cuDNN, worst stage"] == (12, "stretch met")
    assert found["grad_weight over PyTorch native, worst stage"] == (20, "NOT MET")
    assert found["batch 1 over PyTorch's best, worst stage"] == (0.9, "NOT MET")
    assert found["masked-patch loss, of the copy bandwidth"] == (0.75, "met")
    assert found["masked-patch loss over eager"] == (4, "NOT MET")


def test_nothing_measured_meets_nothing():
    assert {verdict for _, verdict in verdicts([]).values()} == {"not measured"}
    one_stage_short = [row for row in rows() if row["size"] != 7]
    assert verdicts(one_stage_short)["forward, stage 1"] == (None, "not measured")
    no_peer = rows(speedup_over_best_cudnn=None)
    assert verdicts(no_peer)["forward over the best cuDNN, worst stage"] == (None, "not measured")
    wrong = [row | {"wrong": "yes"} if row["size"] == 7 else row for row in rows()]
    assert verdicts(wrong)["forward, all 24 K x K layers of RepLKNet-31B"] == (None, "not measured")


def test_the_table_has_a_line_a_goal():
    table = goals.goal_table(rows(), [])
    assert len(table) == 1 + len(goals.GOALS)
    assert any("200 us" in line and "met" in line for line in table)


def document():
    return {
        "rows": rows(as_read=True),
        "gpu": {"name": "Fake"},
        "ceilings": {"bandwidth": 4e12, "peak": {"bfloat16": 8e14}},
    }


def test_points_are_flops_on_valid_taps(tmp_path):
    points = roofline.points(document(), "bfloat16")
    assert len(points) == 12
    layer = replknet_31b(64)[0]
    assert points[0]["tflops"] == pytest.approx(layer.flops / 0.2e-3 / 1e12)
    assert points[0]["intensity"] == pytest.approx(layer.flops / layer.bytes)
    assert roofline.draw(document(), "kernels_fake", folder=tmp_path).read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_says_so(tmp_path):
    empty = document() | {"rows": [row | {"wrong": "yes"} for row in rows(as_read=True)]}
    with pytest.raises(ValueError, match="no row in bfloat16 with a speed"):
        roofline.draw(empty, "kernels_fake", folder=tmp_path)
    assert roofline.points(document(), "float32") == []
