"""The files of tiles: the user's own and the shipped table."""

import errno
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels.depthwise_conv2d import op, tile_files

SHIPPED = "toeplitz sm_90 bfloat16 64x128x56x56 31x31"


@pytest.mark.parametrize(
    ("dtype", "batch", "channels", "found"),
    [
        (torch.float16, 64, 128, True),
        (torch.bfloat16, 256, 128, True),
        (torch.bfloat16, 63, 128, False),
        (torch.bfloat16, 64, 127, False),
        (torch.float32, 64, 128, False),
    ],
)
@pytest.mark.parametrize("operation", ["toeplitz", "grad_weight"])
def test_a_shipped_tile_serves_larger_batches_and_float16(taken, operation, dtype, batch, channels, found):
    like = torch.empty(batch, channels, 56, 56, dtype=dtype, device="meta")
    assert tile_files.shipped(tile_files.TABLE, tile_files.key(operation, like, (31, 31), "tf32x3")) is None
    name = tile_files.key(operation, like, (31, 31), "ieee")
    table = tile_files.read(tile_files.TABLE)[f"{operation} sm_90 bfloat16 64x128x56x56 31x31"]
    assert tile_files.shipped(tile_files.TABLE, name) == (table if found else None)


def test_the_nearest_batch_below_is_taken(tmp_path):
    table = tmp_path / "table.json"
    tiles = {f"toeplitz sm_90 bfloat16 {batch}x8x9x9 5x5": {"rows": batch} for batch in (8, 64, 16)}
    table.write_text(json.dumps(tiles))
    rows = [tile_files.shipped(table, f"toeplitz sm_90 bfloat16 {batch}x8x9x9 5x5") for batch in (7, 8, 17, 640)]
    assert rows == [None, {"rows": 8}, {"rows": 16}, {"rows": 64}]


def test_what_several_processes_measure_is_all_kept(taken):
    """The ranks of a training run share one file; the lock works between threads as between processes."""
    names = [f"shape {number}" for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: tile_files.remember(name, "taps"), names))
    assert tile_files.read(tile_files.cache_file()) == dict.fromkeys(names, "taps")


def test_the_file_is_as_readable_as_the_umask_says(taken):
    """Several users share it."""
    before = os.umask(0o027)
    try:
        tile_files.remember("shape", "taps")
    finally:
        os.umask(before)
    assert tile_files.cache_file().stat().st_mode & 0o777 == 0o640
    assert {path.suffix for path in tile_files.cache_file().parent.glob("*tiles*")} == {".json", ".lock"}, (
        "no draft is left"
    )


def test_a_user_without_a_home_has_a_file(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(tile_files.Path, "home", no_home)
    assert tile_files._cache_file("/shared/tiles.json", None, None) == tile_files.Path("/shared/tiles.json")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it leaves what it cannot find
    assert tile_files._cache_file(None, None, "").parent == tile_files.Path("~/.cache/widefield")


def test_what_other_kernels_measured_is_not_used(tmp_path, monkeypatch):
    """An entry may be no tile of this version, which would end a training run, or say nothing of its kernels."""

    def name():
        tile_files._cache_file.cache_clear()
        return tile_files._cache_file(None, str(tmp_path), None).name

    sources = tmp_path / "sources"
    shutil.copytree(tile_files.TABLE.parent, sources)
    names = [name()]
    monkeypatch.setattr(tile_files, "TABLE", sources / "tiles.json")
    assert name() == names[0]
    (sources / "toeplitz.py").write_text("class Tile: ...")
    names.append(name())
    monkeypatch.setattr(tile_files.triton, "__version__", "0.0")
    names.append(name())
    assert len(set(names)) == 3
    tile_files._cache_file.cache_clear()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"cut off', "is damaged (Unterminated string"),
        ("[1, 2]", "holds a list"),
        (json.dumps({SHIPPED: {"rows": 4, "depth": 2}}), f"has {{'rows': 4, 'depth': 2}} for '{SHIPPED}', which is no"),
        (json.dumps({SHIPPED: "cutlass"}), f"has 'cutlass' for '{SHIPPED}', which is not a tile of this version"),
    ],
    ids=["damaged", "a list", "another tile", "another word"],
)
def test_a_damaged_or_foreign_file_is_named(taken, content, reason):
    tile_files.cache_file().write_text(content)
    x, w = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((64, 128, 56, 56), (128, 1, 31, 31)))
    with pytest.raises(RuntimeError, match=re.escape(f"{tile_files.cache_file()} {reason}") + ".*: remove it, or name"):
        op._cuda(x, w)
    if content.endswith("]"):
        with pytest.raises(RuntimeError, match="holds a list"):
            tile_files.remember(SHIPPED, "taps")


def refuse(*arguments, **options):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_in_a_closed_folder_there_is_no_file(taken, monkeypatch):
    """For example the home of another user, which $HOME may name in a container."""
    x, w = torch.zeros(2, 8, 9, 9), torch.zeros(8, 1, 5, 5)
    monkeypatch.setattr(os, "stat", refuse)
    op._cuda(x, w)
    assert [launch[0] for launch in taken] == ["toeplitz"]


def test_a_file_of_another_user_is_named(taken, monkeypatch):
    tile_files.cache_file().write_text("{}")
    monkeypatch.setattr(tile_files.Path, "read_text", refuse)
    with pytest.raises(tile_files.TilesError, match=r"tiles\.json cannot be read \(Permission denied\): remove it"):
        tile_files.read(tile_files.cache_file())
