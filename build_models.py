#!/usr/bin/env python3
"""Build a model repository for NVIDIA Triton Inference Server from a checkpoint.

python build_models.py --weights runs/digits-nano
python build_models.py --arch replknet_31b --weights RepLKNet-31B_ImageNet-1K_224.pth --labels imagenet.txt
python build_models.py --arch timm/mobilenetv3_large_100 --weights mobilenetv3_large_100.safetensors
"""

import argparse
import os
import signal
import sys
from pathlib import Path

try:
    from export.build import build
    from export.source import FORMATS, BuildOptions
    from export.torchscript import PRECISIONS
    from models.errors import SettingsError
except (ImportError, RuntimeError) as error:  # the latter: a native library that does not load
    sys.exit(f"build_models: {error}")
except KeyboardInterrupt:  # PyTorch's import takes seconds
    sys.exit(128 + signal.SIGINT)


def parse_arguments(arguments: list[str] | None = None) -> BuildOptions:
    epilog = "Exit status: 0 built; 1 not built; 2 the value of an option cannot be used; 130 Ctrl-C; 143 SIGTERM."
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog, formatter_class=layout)
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help="architecture: replknet_31b, _31l, _xl, _small, _nano or timm/NAME (default: that of a checkpoint folder)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="checkpoint: a folder of training, the file in it, or another file of safetensors or torch.save with its "
        "--arch; the same as --checkpoint of training.evaluate",
    )
    parser.add_argument("--random-weights", action="store_true", help="use random weights, only to measure speed")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="text file with one label per line (default: the checkpoint's labels, else the class indices)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("model_repository"),
        metavar="FOLDER",
        help="model repository to write (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the network's input in pixels (default: that of the checkpoint, else of the architecture)",
    )
    parser.add_argument(
        "--crop-pct",
        type=float,
        metavar="SHARE",
        help="share of the resized image's shorter side that the crop keeps, 0.1 to 1 (default: as for --image-size)",
    )
    parser.add_argument(
        "--crop-mode",
        metavar="MODE",
        help="how images become square, as in timm: center, squash or border (default: as for --image-size)",
    )
    parser.add_argument(
        "--precision",
        choices=sorted(PRECISIONS),
        default="fp32",
        help="data type of weights and activations (default: fp32); bf16 is for GPUs, and CPUs with avx512_bf16 or "
        "amx_bf16; fp16 is for GPUs: most CPUs compute it, but slowly",
    )
    parser.add_argument(
        "--format",
        default="torchscript",
        metavar="FORMAT,...",
        help=f"formats of the exported model, separated by commas: {', '.join(FORMATS)} (default: torchscript)",
    )
    parser.add_argument("--version", type=int, metavar="N", help="version number (default: the next one)")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads of the backbone (default: 0, all cores that this build may use)",
    )
    parser.add_argument(
        "--class-map",
        action="store_true",
        help="also build an ensemble that returns a map of the evidence for the answer",
    )
    parser.add_argument(
        "--parity-images",
        type=Path,
        metavar="FOLDER",
        help="images on which the export is compared with eager PyTorch (default: scikit-learn's photographs)",
    )
    values = vars(parser.parse_args(arguments))
    values["formats"] = tuple(part.strip() for part in values.pop("format").split(",") if part.strip())
    return BuildOptions(**values)


def main() -> int:
    options = parse_arguments()
    before = identity(options.output)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds: what is unfinished is removed
    try:
        report = build(options)
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("WIDEFIELD_TRACEBACK"):
            raise
        print(f"build_models: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:
        changed = identity(options.output) != before
        outcome = f" too late: {options.output} is the new one" if changed else ", the repository is as it was"
        print(f"build_models: stopped{outcome}", file=sys.stderr)
        return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
    print(report)
    return 0


def identity(folder: Path) -> tuple[int, int] | None:
    """Another one after a build has put its folder there; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


if __name__ == "__main__":
    sys.exit(main())
