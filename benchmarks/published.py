"""Published figures of the architectures (published.json, with sources), and recommendations that follow."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published.json")
MOBILE_MACS = 600e6  # "the mobile setting" of the mobile architectures' own papers


@dataclass(frozen=True)
class Row:
    """One architecture: counts and times of this run, and the published figures (accuracies in percent)."""

    arch: str
    image_size: int
    parameters: int
    macs: int
    head_parameters: int
    latency_ms: dict[str, float]
    published: dict[str, Any]


@dataclass(frozen=True)
class Recommendation:
    """An architecture for a use, and the figures that support it; no architecture if none qualifies."""

    use: str
    arch: str | None
    reason: str


def published_figures() -> dict[str, dict[str, Any]]:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["models"]


def claims() -> list[dict[str, str]]:
    """Claims in circulation, each with the truth and its source."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["claims"]


def recommend(rows: Sequence[Row]) -> list[Recommendation]:
    """Recommend an architecture for accuracy, for a mobile CPU and for few labels, only by the figures of `rows`."""
    return [_for_accuracy(rows), _for_mobile(rows), _for_few_labels(rows)]


def _for_accuracy(rows: Sequence[Row]) -> Recommendation:
    ranked = _ranked(rows, "top1")
    if not ranked:
        return Recommendation("accuracy", None, "none of those compared has a published accuracy")
    best = ranked[0]
    reason = f"the highest published top-1, {best.published['top1']} %"
    if len(ranked) > 1:
        after = ranked[1]
        reason += (
            f", against {after.published['top1']} % of {after.arch}, for {best.macs / after.macs:.1f} times its "
            f"multiply-accumulates{_times_slower(best, after)}"
        )
    return Recommendation("accuracy", best.arch, reason)


def _for_mobile(rows: Sequence[Row]) -> Recommendation:
    ranked = _ranked(rows, "top1", lambda row: row.macs <= MOBILE_MACS)
    if not ranked:
        return Recommendation(
            "mobile CPU",
            None,
            f"none of those compared has at most {MOBILE_MACS / 1e6:.0f} M multiply-accumulates"
            " and a published accuracy",
        )
    best, heaviest = ranked[0], max(rows, key=lambda row: row.macs)
    reason = (
        f"the highest published top-1, {best.published['top1']} %, within {MOBILE_MACS / 1e6:.0f} M "
        f"multiply-accumulates: it has {best.macs / 1e6:.0f} M and {best.parameters / 1e6:.1f} M parameters"
    )
    if heaviest.arch != best.arch:
        reason += f"; {heaviest.arch} has {heaviest.macs / best.macs:.0f} times as many{_times_slower(heaviest, best)}"
    return Recommendation("mobile CPU", best.arch, reason)


def _for_few_labels(rows: Sequence[Row]) -> Recommendation:
    ranked = _ranked(rows, "top1_from_22k")
    if not ranked:
        return Recommendation("few labels", None, "none of those compared has published weights from ImageNet-22K")
    best = ranked[0]
    wide, narrow = best.published["top1_from_22k"], best.published["top1"]
    gain = "" if narrow is None else f", {wide - narrow:+.1f} points on those from ImageNet-1K alone"
    return Recommendation(
        "few labels",
        best.arch,
        f"the best features to start from: its published weights from ImageNet-22K reach {wide} %{gain}; with "
        f"--head-only {best.head_parameters / 1e6:.2f} M of {best.parameters / 1e6:.1f} M parameters learn",
    )


def _ranked(rows: Sequence[Row], figure: str, allowed: Callable[[Row], bool] = lambda _: True) -> list[Row]:
    """The rows that have the figure, highest first; equals by fewer multiply-accumulates."""
    having = [row for row in rows if row.published.get(figure) is not None and allowed(row)]
    return sorted(having, key=lambda row: (-row.published[figure], row.macs))


def _times_slower(slow: Row, fast: Row) -> str:
    both = slow.latency_ms.keys() & fast.latency_ms.keys()
    shares = [
        f"{slow.latency_ms[device] / fast.latency_ms[device]:.1f} times its time ({device})" for device in sorted(both)
    ]
    return f" and {', '.join(shares)}" if shares else ""
