"""Tuned tiles go into the shipped table: which entries change, and what the file looks like."""

import json

import pytest

from benchmarks.kernels import ship
from kernels.depthwise_conv2d import tile_files

FORWARD = "toeplitz sm_90 bfloat16 64x128x56x56 31x31"
STAGE_2 = "toeplitz sm_90 bfloat16 64x256x28x28 29x29"
GRADIENT = "grad_weight sm_90 bfloat16 64x512x14x14 27x27"


@pytest.fixture
def table(monkeypatch, tmp_path):
    path = tmp_path / "tiles.json"
    path.write_text(tile_files.TABLE.read_text())
    monkeypatch.setattr(tile_files, "TABLE", path)
    yield path
    tile_files.read.cache_clear()


def test_the_table_is_written_as_it_is_kept(table):
    before = tile_files.read(table)
    assert ship.text(before) == table.read_text()
    assert all(ship.fields(ship.algorithm(table, name)) == tile for name, tile in before.items())


def test_winners_of_known_shapes_are_shipped(table, tmp_path, capsys):
    before = json.loads(table.read_text())
    tuned = {FORWARD: before[FORWARD] | {"cached": True}, STAGE_2: "pytorch"}
    tuned |= {GRADIENT: dict(sorted((before[GRADIENT] | {"warps": 4}).items()))}
    tuned |= {FORWARD.replace("64x128", "1x128"): before[FORWARD], "toeplitz sm_90 bfloat16 64x8x7x7 5x5": "toeplitz"}
    (tmp_path / "tuned.json").write_text(json.dumps(tuned))
    assert ship.main([str(tmp_path / "tuned.json")]) == 0
    after = json.loads(table.read_text())
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {FORWARD, GRADIENT}
    assert after[FORWARD]["cached"] is True
    assert list(after[GRADIENT]) == list(before[GRADIENT])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted([FORWARD, STAGE_2, GRADIENT])
    assert lines[-1] == f"{STAGE_2}: pytorch was faster; the entry is left as it is"
    changed = table.read_text()
    assert ship.main([str(tmp_path / "tuned.json")]) == 0
    assert f"{FORWARD}: as it was" in capsys.readouterr().out
    assert table.read_text() == changed


@pytest.mark.parametrize("content", [None, "[]", "{", json.dumps({FORWARD: {"rows": 4, "nonsense": 1}})])
def test_what_is_no_file_of_tiles_is_named_and_changes_nothing(table, tmp_path, capsys, content):
    path, before = tmp_path / "tuned.json", table.read_text()
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        ship.main([str(path)])
    assert str(path) in capsys.readouterr().err
    assert table.read_text() == before
