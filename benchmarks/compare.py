"""Compare architectures: counts and times of this machine, published figures, claims beside the truth, what to choose.

Examples:
    python -m benchmarks.compare
    python -m benchmarks.compare --archs replknet_nano timm/mobilenetv3_small_100 --rounds 5
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from benchmarks.harness import gpu, other_work_warning, pin_float32, require_native, versions, write_document
from benchmarks.markdown import beside
from benchmarks.published import Recommendation, Row, claims, published_figures, recommend
from benchmarks.timing import Timing, interleaved
from models import ModelConfig, check_arch, count_macs, count_parameters, create_model, linear_head, reparameterize
from training.logs import standard_output
from training.outputs import check_file
from training.script import exit_code, parse
from training.settings import SettingsError, check_ranges

ARCHS = (
    "replknet_31b",
    "replknet_small",
    "replknet_nano",
    "timm/resnet50",
    "timm/mobilenetv3_large_100",
    "timm/swin_tiny_patch4_window7_224",
    "timm/convnext_tiny",
    "timm/efficientnet_lite0",
)


@dataclass(frozen=True)
class Config:
    """Compare architectures."""

    archs: tuple[str, ...] = ARCHS
    """Architectures to compare: names in models.ARCHITECTURES, or timm/NAME"""
    image_size: int = 0
    """Side of the input in pixels; 0: each architecture's own"""
    rounds: int = 20
    """Rounds of timing, in which the architectures take turns; 0: only count"""
    threads: int = 0
    """CPU threads that compute; 0: all"""
    output: Path = Path("benchmarks/results/compare.json")
    """JSON file for the figures, with the hardware and the versions"""


def compare(config: Config, progress: Callable[[str], None] = lambda _: None) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and the rest of the results. Weights are random: time and counts do not depend on them.

    Everything is measured in the deploy form, fp32, eager, channels_last, one image. Raises `SettingsError` for no
    architecture, a duplicate, an invalid number or an output that cannot be written, and `ValueError` for an
    architecture that is unknown.
    """
    if not config.archs or len(set(config.archs)) < len(config.archs):
        raise SettingsError(f"--archs {' '.join(config.archs)}: at least one, each once")
    check_ranges(config)
    if config.image_size < 0:
        raise SettingsError(f"--image-size {config.image_size}: pixels, or 0 for each architecture's own")
    for arch in config.archs:
        check_arch(arch)
    check_file("--output", config.output)
    if config.rounds:
        require_native()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    published = published_figures()
    networks: dict[str, nn.Module] = {}
    rows: list[Row] = []
    for arch in config.archs:
        progress(f"counting {arch}")
        size = config.image_size or ModelConfig(arch).image_size
        model = create_model(arch, image_size=size)
        network = reparameterize(model)
        networks[arch] = network
        rows.append(
            Row(
                arch,
                size,
                count_parameters(network),
                count_macs(network, size),
                _head_parameters(model),
                {},
                published.get(arch, {}),
            )
        )
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])] if config.rounds else []
    pin_float32()
    warning = other_work_warning() if devices else None
    timings: dict[str, dict[str, Timing]] = {}
    for device in devices:
        progress(f"timing on {device}")
        sizes = {row.arch: row.image_size for row in rows}
        timings[device] = interleaved(
            {arch: _call(network, sizes[arch], device) for arch, network in networks.items()}, config.rounds
        )
        for row in rows:
            row.latency_ms[device] = timings[device][row.arch].median
    details = {
        "form": "deploy form, fp32, eager, channels_last, batch 1",
        "threads": torch.get_num_threads(),
        "versions": versions("torch", "timm"),
        "gpu": gpu() if "cuda" in devices else None,
        "warning": warning,
        "latency": timings,
    }
    return rows, details


def _call(network: nn.Module, size: int, device: str) -> Callable[[], object]:
    """Run one forward pass of one image and wait for its end."""
    network = copy.deepcopy(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(1, 3, size, size, device=device).to(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            logits = network(images)
        if device == "cuda":
            torch.cuda.synchronize()
        return logits

    return run


def _head_parameters(model: nn.Module) -> int:
    """The number of parameters of the training form's last layer; 0 unless that is a single linear layer."""
    try:
        return count_parameters(linear_head(model))
    except ValueError:
        return 0


def figures_table(rows: list[Row]) -> Table:
    table = Table(title="counted and timed here, one image (published; 22K: pre-trained on ImageNet-22K)")
    table.add_column("architecture", overflow="fold")
    for name in ("px", "M params", "G MACs", "ms", "top-1, %"):
        table.add_column(name)
    for row in rows:
        figures = row.published
        same_size = figures.get("image_size") == row.image_size
        from_22k = f"\n22K: {figures['top1_from_22k']}" if figures.get("top1_from_22k") else ""
        table.add_row(
            row.arch,
            str(row.image_size),
            f"{row.parameters / 1e6:.2f}" + beside(figures.get("parameters_m")),
            f"{row.macs / 1e9:.3f}" + beside(figures.get("gmacs") if same_size else None),
            "\n".join(f"{device} {value:.1f}" for device, value in row.latency_ms.items()) or "-",
            ("-" if figures.get("top1") is None else f"{figures['top1']:g}") + from_22k,
        )
    return table


def claims_table() -> Table:
    table = Table("claim in circulation", "truth", "source", show_lines=True)
    for entry in claims():
        table.add_row(entry["claim"], entry["truth"], entry["source"])
    return table


def recommendation_table(recommendations: list[Recommendation]) -> Table:
    table = Table("use", "take", "because", show_lines=True)
    for entry in recommendations:
        table.add_row(entry.use, entry.arch or "-", entry.reason)
    return table


def report(config: Config) -> None:
    console = standard_output()
    with console.status("comparing") as status:
        rows, details = compare(config, status.update)
    recommendations = recommend(rows)
    content = {"rows": [asdict(row) for row in rows], "recommendations": [asdict(r) for r in recommendations]}
    write_document(config.output, **details, **content, claims=claims())
    for table in (figures_table(rows), claims_table(), recommendation_table(recommendations)):
        console.print(table)
    if details["warning"]:
        console.print(details["warning"], style="yellow")
    console.print(f"{config.output}: {details['form']}; sources of the published figures: benchmarks/published.json")


def main() -> int:
    config = parse(Config, "benchmarks.compare", __doc__)
    return exit_code("compare", lambda: report(config))


if __name__ == "__main__":
    sys.exit(main())
