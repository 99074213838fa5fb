"""Put a GPU's tuned tiles into the shipped table, kernels/depthwise_conv2d/tiles.json.

    python -m benchmarks.kernels.ship benchmarks/results/kernels_<gpu>_tiles.json

Only shapes that the table has are changed: a new entry would serve all larger batches too, and is for a person to add.
Where the rule or PyTorch was fastest the entry stays, and is named. Afterwards: make native test.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.commands import command_parser
from kernels.depthwise_conv2d import grad_weight, tile_files, toeplitz

KINDS = {"toeplitz": toeplitz.Tile, "grad_weight": grad_weight.GradWeightTile}
Tiles = dict[str, Any]


def algorithm(path: Path, name: str) -> tile_files.Algorithm:
    return tile_files.algorithm_in(path, name, KINDS[name.split()[0]])


def fields(tile: toeplitz.Tile | grad_weight.GradWeightTile) -> Tiles:
    """The tile's fields in their order, without those that are as by default."""
    return {key: value for key, value in asdict(tile).items() if value != getattr(type(tile), key, None)}


def text(table: Tiles) -> str:
    """The table as a file, an entry a line."""
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table)) + "\n}\n"


def ship(table: Tiles, path: Path) -> Iterator[str]:
    """Change `table` and yield a line for each of its shapes that `path` has. Raises `TilesError`."""
    for name in sorted(table.keys() & tile_files.read(path).keys()):
        found = algorithm(path, name)
        if isinstance(found, str):
            yield f"{name}: {found} was faster; the entry is left as it is"
        elif found == algorithm(tile_files.TABLE, name):
            yield f"{name}: as it was"
        else:
            yield f"{name}: {json.dumps(fields(found))} instead of {json.dumps(table[name])}"
            table[name] = fields(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("tuned", type=Path, metavar="FILE", help="what benchmarks.kernels --tune wrote")
    path = parser.parse_args(arguments).tuned
    if not path.is_file():
        parser.error(f"{path}: there is no such file; python -m benchmarks.kernels --tune 30 writes it, on a GPU")
    try:
        table = dict(tile_files.read(tile_files.TABLE))
        lines = list(ship(table, path))
    except tile_files.TilesError as error:
        parser.error(f"{path}: no tuned tiles ({error})")
    tile_files.TABLE.write_text(text(table))
    tile_files.read.cache_clear()
    print("\n".join(lines or [f"{path} has none of the table's shapes"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
