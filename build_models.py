#!/usr/bin/env python3
"""Checkpoint -> model_repository/ for NVIDIA Triton Inference Server.

python build_models.py --weights runs/digits-nano
python build_models.py --arch replknet_31b --weights RepLKNet-31B_ImageNet-1K_224.pth --labels imagenet.txt
python build_models.py --arch timm/mobilenetv3_large_100 --weights mobilenetv3_large_100.safetensors
"""

import argparse
import signal
import sys
from pathlib import Path

try:
    from export.build import build
    from export.source import FORMATS, BuildOptions
    from export.torchscript import PRECISIONS
except (ImportError, RuntimeError) as error:  # the latter: a native library that does not load
    sys.exit(f"build_models: {error}")


def parse_arguments(arguments: list[str] | None = None) -> BuildOptions:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arch",
        help="replknet_31b, _31l, _xl, _small, _nano or any of timm's as timm/NAME; a checkpoint folder names its own",
    )
    parser.add_argument(
        "--weights", type=Path, help="checkpoint folder or the file in it, or a file of safetensors or torch.save"
    )
    parser.add_argument("--random-weights", action="store_true", help="no checkpoint: for measuring speed only")
    parser.add_argument(
        "--labels", type=Path, help="text file, one label per line (default: the checkpoint's, else the indices)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("model_repository"), help="the repository (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, help="pixels (default: the checkpoint's or the architecture's)")
    parser.add_argument(
        "--crop-pct", type=float, help="share of the resized shorter side that is kept (default: as for --image-size)"
    )
    parser.add_argument("--crop-mode", help="timm's: center, squash or border (default: as for --image-size)")
    parser.add_argument(
        "--precision", choices=sorted(PRECISIONS), default="fp32", help="of weights and activations (default: fp32)"
    )
    parser.add_argument(
        "--format", default="torchscript", help=f"comma-separated: {', '.join(FORMATS)} (default: torchscript)"
    )
    parser.add_argument("--version", type=int, help="version number (default: the next)")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="CPU threads of the backbone (default: 0, all cores that this build may use)",
    )
    parser.add_argument(
        "--class-map", action="store_true", help="also an ensemble that shows where the answer's evidence lies"
    )
    parser.add_argument(
        "--parity-images", type=Path, help="compared with eager on these (default: scikit-learn's photographs)"
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
        print(f"build_models: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        changed = identity(options.output) != before
        outcome = f" too late: {options.output} is the new one" if changed else ", the repository is as it was"
        print(f"build_models: stopped{outcome}", file=sys.stderr)
        return 130
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
