"""A page to try a server: drop a picture, see its five best classes, where the evidence lies, and the time by step.

    make page ARGS="--url localhost:8001"

Only `build` imports Gradio, which has a separate environment (docs/page.md).
"""

import argparse
import html
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from client import (
    STEPS,
    Classifier,
    ClassifierError,
    InvalidImageError,
    ModelNotFoundError,
    Prediction,
    Times,
    overlay,
    step_times,
)
from client.options import UsageError, add_server_options, open_classifier

if TYPE_CHECKING:
    from PIL.Image import Image

TOP = 5
SMALL, LARGE = 256, 1024  # pixels of the overlay's longer side, at least and at most
STATUS_SECONDS = 2.0
PIPELINE = ("preprocess", "backbone", "softmax")
NO_MAP = "the server has no explained model, so there is no overlay: build_models.py --class-map makes one."
OFF = {"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False, "footer_links": [], "quiet": True}
CSS = """
#note:not(:has(.note)) {display: none}
#note .html-container {padding: 0}
#note .note {padding: .6em .9em; border-left: 4px solid #d97706; background: rgba(217, 119, 6, .12)}
#note .error {border-color: #dc2626; background: rgba(220, 38, 38, .12)}
#picture .upload-container {width: 100% !important}
#picture img, #overlay img {width: 100%; height: 100%; object-fit: contain}
#classes, #times {min-width: min(320px, 100%) !important} /* below twice that they stand one under the other */
table.bars {width: 100%; margin: 1.2em 0 0; font-variant-numeric: tabular-nums}
table.bars, .bars :is(tr, td) {border: 0; padding-block: .2em}
.bars td:nth-child(2) {width: 55%}
.bars td:last-child {text-align: right; white-space: nowrap}
.bars .bar {height: .5em; min-width: 1px; border-radius: 2px; background: var(--color-accent)}
#times tr:last-child td {border-top: 1px solid var(--border-color-primary) !important}
"""


@dataclass(frozen=True)
class Shown:
    """The contents of the page for one picture.

    Attributes:
        classes: label -> probability, best first.
        picture: the overlay, if there is one.
        times: (step, milliseconds), the last of them the total; `requests`: how many they are means of.
        note: a line for the user; `failed`: it is an error, and there is no answer.
    """

    classes: dict[str, float] = field(default_factory=dict)
    picture: "Image | None" = None
    times: Sequence[tuple[str, float]] = ()
    requests: int = 1
    note: str = ""
    failed: bool = False


def ask(classifier: Classifier, image: str | None) -> Shown:
    """Classify and explain one file. Errors are reported in `Shown.note`, not raised."""
    if image is None:
        return Shown()
    before = classifier.status(STATUS_SECONDS)
    note, picture = "", None
    try:
        started = time.perf_counter()
        try:
            explanation = classifier.explain(image, TOP)
            predictions = explanation.predictions
        except ModelNotFoundError:
            started = time.perf_counter()
            predictions, explanation, note = classifier.classify(image, TOP), None, NO_MAP
        seconds = time.perf_counter() - started
    except ClassifierError as error:
        return Shown(note=error.message, failed=True)
    steps = settled(classifier, before)
    if explanation is not None:
        try:
            picture = overlay(image, explanation, least=SMALL)
            picture.thumbnail((LARGE, LARGE))
        except InvalidImageError as error:
            note = f"there is no overlay: {error.message}"
    times, requests = time_by_step(steps, seconds, classifier.model)
    return Shown(named(predictions), picture, times, requests, note)


def settled(classifier: Classifier, before: Sequence[Any]) -> dict[str, dict[str, Times]]:
    """Return `step_times` since `before` once two readings agree: the last step is counted after its answer is sent."""
    steps: dict[str, dict[str, Times]] = {}
    for _ in range(10):
        last, steps = steps, step_times(before, classifier.status(STATUS_SECONDS))
        if steps == last:
            break
        time.sleep(0.02)
    return steps


def time_by_step(steps: dict[str, dict[str, Times]], seconds: float, model: str) -> tuple[list[tuple[str, float]], int]:
    """The rows of the table, and how many requests their means are of.

    Each step of the server with its input's and output's copies, the queues of all steps together, what is left of
    `seconds` (network, client, hand-over), and the total.
    """
    names = [name for name in steps if name not in (model, f"{model}_explained")]
    names.sort(key=lambda name: (*PIPELINE, name).index(name))
    rows = [(name, sum(steps[name][step].mean_ms for step in STEPS if step != "queue")) for name in names]
    if rows:
        rows.append(("queue", sum(steps[name]["queue"].mean_ms for name in names)))
        rows.append(("network", max(0.0, 1e3 * seconds - sum(ms for _, ms in rows))))
    rows.append(("total", 1e3 * seconds))
    return rows, max((steps[name]["compute"].count for name in names), default=1)


def named(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Label -> probability. Of two classes with one name (ImageNet has two cranes) the second has its index too."""
    found: dict[str, float] = {}
    for each in predictions:
        found[f"{each.label} ({each.index})" if each.label in found else each.label] = each.probability
    return found


def note_html(shown: Shown) -> str:
    kind, role = ("note error", "alert") if shown.failed else ("note", "status")
    words = html.escape(shown.note[:1].upper() + shown.note[1:])
    return f'<div class="{kind}" role="{role}">{words}</div>' if words else ""


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A table of (name, share, the share in words)."""
    cells = [
        f'<tr><td>{html.escape(name)}</td><td><div class="bar" style="width: {min(100.0, 100 * share):.1f}%">'
        f"</div></td><td>{html.escape(words)}</td></tr>"
        for name, share, words in rows
    ]
    return f'<table class="bars">{"".join(cells)}</table>' if cells else ""


def classes_html(shown: Shown) -> str:
    """The classes as bars, to a tenth of a percent: each of a thousand equally likely classes has that."""
    return bars((label, p, f"{100 * p:.1f} %" if p >= 0.0005 else "< 0.1 %") for label, p in shown.classes.items())


def times_html(shown: Shown) -> str:
    if not shown.times:
        return ""
    total = shown.times[-1][1] or 1.0
    note = ""
    if len(shown.times) == 1:
        note = "<p>The server does not tell its steps' times.</p>"
    elif shown.requests > 1:
        note = f"<p>The server answered {shown.requests} requests meanwhile: its times are their means.</p>"
    return bars((step, ms / total, f"{ms:.1f} ms") for step, ms in shown.times) + note


def build(answer: Callable[[str | None], Shown], concurrency: int) -> tuple[Any, Any]:
    """The page, a `gradio.Blocks`, and its theme; `answer` is given a file, or None when the picture is removed."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    import gradio
    from gradio.themes.utils.fonts import LocalFont

    def show(image: str | None) -> list[Any]:
        shown = answer(image)
        return [note_html(shown), shown.picture, classes_html(shown), times_html(shown)]

    with gradio.Blocks(title="Widefield", delete_cache=(600, 3600)) as page:  # uploads are deleted after an hour
        gradio.Markdown("# Widefield\nDrop a picture: its five best classes, where the evidence for the best one lies.")
        note = gradio.HTML(elem_id="note")
        with gradio.Row(equal_height=True):
            sources, buttons = ["upload", "clipboard"], ["download", "fullscreen"]
            picture = gradio.Image(label="Picture", type="filepath", sources=sources, height=400, elem_id="picture")
            evidence = gradio.Image(label="Evidence for the best class", buttons=buttons, height=400, elem_id="overlay")
        with gradio.Row(equal_height=True):
            table = {"show_label": True, "container": True}  # Gradio's Label would round to whole percents
            classes = gradio.HTML(label="Top 5", elem_id="classes", **table)
            times = gradio.HTML(label="Time by step", elem_id="times", **table)
        # Pass the file on as it was uploaded: Gradio would decode it, and fail before the server is asked.
        picture.preprocess = lambda payload: payload and payload.path
        event = {"trigger_mode": "always_last", "show_progress": "minimal", "api_visibility": "private"}
        picture.change(show, picture, [note, evidence, classes, times], concurrency_limit=concurrency, **event)
    font = LocalFont("IBM Plex Sans", weights=(400, 700))  # comes with Gradio; its 600 has no Latin letters
    return page.queue(max_size=32), gradio.themes.Default(font=[font, "sans-serif"])


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m page", description=summary, epilog="See docs/page.md.")
    add_server_options(parser, timeout=10.0)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address of the page (default: 127.0.0.1)")
    add("--port", type=int, default=7860, help="port of the page (default: 7860)")
    add("--root-path", default="", metavar="PATH", help="path prefix that a proxy strips, such as /try")
    add("--concurrency", type=int, default=2, metavar="N", help="pictures classified at a time (default: 2)")
    add("--max-megabytes", type=float, default=20.0, metavar="MIB", help="largest picture, in MiB (default: 20)")
    options = parser.parse_args(arguments)
    if options.concurrency < 1 or not 1 <= options.max_megabytes < math.inf:
        parser.error("--concurrency and --max-megabytes: give a number, 1 or more")
    if not 1 <= options.port < 2**16:
        parser.error(f"--port {options.port}: give a number, 1 to 65535")
    if options.root_path and not options.root_path.startswith(("/", "http://", "https://")):
        parser.error(f"--root-path {options.root_path!r}: it begins with /, such as /try")
    try:
        options.classifier = open_classifier(options, Classifier)
    except UsageError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    # Gradio sends a request to itself at the start, which must not go through a proxy.
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{others},{options.host},127.0.0.1,localhost".lstrip(",")
    with options.classifier as classifier:
        try:
            page, theme = build(lambda image: ask(classifier, image), options.concurrency)
            where = {"server_name": options.host, "server_port": options.port, "root_path": options.root_path}
            size = int(options.max_megabytes * 2**20)
            page.launch(**where, **OFF, max_file_size=size, css=CSS, theme=theme, prevent_thread_lock=True)
        except ImportError as error:
            print(f"page: {error}: make page has the environment for it", file=sys.stderr)
            return 1
        except OSError as error:
            busy = f"{options.host}:{options.port} is taken, or not this machine's: see --port"
            print(f"page: {error if error.errno else busy}", file=sys.stderr)  # Gradio's own has no errno
            return 1
        print(f"the page is at {page.local_url}, its server at {', '.join(classifier.urls)}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
