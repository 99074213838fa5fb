"""The pages' tables about serving: overhead, steps, overload, instances, preprocessing, faults."""

from collections import Counter
from typing import Any

from benchmarks.markdown import conditions, table


def serving_table(result: dict[str, Any]) -> list[str]:
    lines = [f"**What serving adds**, one image at a time ({result['image']}; {conditions(result)})", ""]
    header = ["model", "bare pipeline, ms", "over gRPC, ms", "over HTTP, ms", "gRPC, HTTP through shared memory, ms"]
    header += ["empty steps over gRPC, ms", "ready in"]
    header += ["with a class map: bare", "over gRPC"]
    rows = []
    for row in result["rows"]:
        bare, added = row["timings"]["bare"]["median"], row["added_ms"]
        ways = {name: f"+{ms:.1f} ({100 * ms / bare:.1f} %)" for name, ms in added.items()}
        shared = f"{ways['gRPC, shared memory']}, {ways['HTTP, shared memory']}"
        empty, ready = row["timings"]["empty"]["median"], row["seconds_to_ready"]
        mapped = (f"{row[name]:.3f} times" for name in ("class_map_ratio", "served_class_map_ratio"))
        cells = [row["arch"], f"{bare:.1f}", ways["gRPC"], ways["HTTP"], shared]
        rows.append([*cells, f"{empty:.1f}", f"{ready:.1f} s", *mapped])
    return lines + table(header, rows)


def transports_table(result: dict[str, Any]) -> list[str]:
    lines = [f"**Ways to send an image**, ms, empty steps ({conditions(result)})", ""]
    names = list(result["rows"][0]["timings"])
    rows = []
    for row in result["rows"]:
        times = [f"{row['timings'][name]['median']:.2f}" for name in names]
        compared = [
            ", ".join(f"{row['ratios'][name][which]:.2f}" for name in ("gRPC", "HTTP"))
            for which in ("over_tritonclient", "shared_over_messages")
        ]
        rows.append([f"{row['bytes']:,}", *times, *compared])
    header = ["bytes", *names, "messages over tritonclient: gRPC, HTTP", "shared memory over messages: gRPC, HTTP"]
    return lines + table(header, rows)


def demo_line(result: dict[str, Any]) -> list[str]:
    grpc, http = (result["answers"][protocol] for protocol in ("grpc", "http"))
    return [
        f"**`make demo`** after the set-up ({conditions(result)}): trained in {result['training_s']:.0f} s, done in "
        f"{result['first_run_s']:.0f} s; again in {result['second_run_s']:.0f} s. Right are {grpc['right']} of "
        f"{grpc['images']} over gRPC, {http['right']} over HTTP."
    ]


def steps_table(result: dict[str, Any], load: str) -> list[str]:
    lines = [f"**Where a request's time goes**, {load}, by the server's own statistics, ms ({conditions(result)})", ""]
    rows = [
        [row["arch"], model, *(f"{ms:.2f}" for ms in times.values())]
        for row in result["rows"]
        for model, times in row["steps_ms"].items()
    ]
    return lines + table(["network", "model", "queue", "input", "compute", "output"], rows)


def first_request_table(result: dict[str, Any]) -> list[str]:
    """The table of first requests; each figure is of one server start."""
    lines = [f"**The first request after ready**, beside the hundredth, ms ({conditions(result)})", ""]
    rows = []
    for row in result["rows"]:
        starts = [", ".join(f"{ms:.0f}" for ms in row[name]) for name in ("first_ms", "hundredth_ms")]
        compared = [f"{row['first_over_hundredth']:.2f}", f"{row['later_as_slow']:.0%}"]
        rows.append([row["arch"], str(row["at_once"]), *starts, *compared])
    header = ["network", "at once", "first", "hundredth", "median of the ratios", "later ones as slow as the first"]
    return lines + table(header, rows)


def overload_table(result: dict[str, Any]) -> list[str]:
    (row,) = result["rows"]
    lines = [f"**More than it can do**: {row['arch']}, {result['image']}, each request to be answered within"]
    lines += [f"{result['deadline_s']:g} s ({conditions(result)}). A closed loop of {row['peak_callers']} answers"]
    lines += [
        f"{row['peak_images_per_s']:.1f} images/s, {row['peak_over_bare']:.2f} times a bare loop of the same steps.",
        "",
    ]
    header = [
        "load, of the best",
        "answered in time, of the best",
        "in each turn",
        "p99 of those, ms",
        "turned away, p50 ms",
        "not in time",
    ]
    rows = []
    for load in row["open_loop"]:
        outcomes = load["outcomes"]
        missed = sum(count for kind, count in outcomes.items() if kind not in ("in time", "rejected"))
        rejected = outcomes.get("rejected", 0)
        away = f"{rejected} ({load['rejected_p50_ms']:.0f})" if rejected else "0"
        goodput, p99 = f"{load['goodput_of_peak']:.0%}", _milliseconds(load["in_time_p99_ms"])
        each = ", ".join(f"{share:.0%}" for share in load["goodput_of_peak_each"])
        rows.append([f"{load['load']:g}", goodput, each, p99, away, str(missed)])
    return [*lines, *table(header, rows), "", "All but the share in each turn is of the turn in the middle."]


def instances_table(result: dict[str, Any]) -> list[str]:
    """The table of two backbone instances with half the threads against one with all."""
    lines = [
        "**Two instances or one**: two backbone instances of half the threads against one of all, "
        f"{result['repeats']} turns of {result['seconds']:g} s each, images/s (p50, p99 in ms), medians "
        f"({conditions(result)})",
        "",
    ]
    rows = []
    for row in result["rows"]:
        cells = [
            f"{row[f'{name}_images_per_s']:.1f} ({row[f'{name}_p50_ms']:.0f}, {row[f'{name}_p99_ms']:.0f})"
            for name in ("two", "one")
        ]
        low, high = row["ratios"][0], row["ratios"][-1]
        rows.append([row["model"], str(row["callers"]), *cells, f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    return lines + table(["model", "callers", "two", "one", "ratio of a turn (range)"], rows)


def preprocess_table(result: dict[str, Any]) -> list[str]:
    memory = result["memory_mib_12_mp"]
    lines = [f"**Preprocessing alone**, images/s of one thread, {result['image_size']} px ({conditions(result)})", ""]
    header = ["file", "pipeline", "images/s", "x Pillow", "grey levels from Pillow: average, most"]
    rows = []
    for kind in result["rows"]:
        for row in kind["rows"]:
            speed = (
                [f"{row['images_per_s']:.1f}", f"{row['ratio_to_pillow']:.2f}"] if "ms" in row else ["not equal", ""]
            )
            away = f"{row['mean_difference']:.2f}, {row['max_difference']}"
            rows.append([kind["file"], row["pipeline"], *speed, away])
    lines += table(header, rows)
    lines += ["", f"One 12-megapixel JPEG takes {memory['reduced']:.0f} MiB, decoded in full {memory['full']:.0f}."]
    return lines


def _milliseconds(value: float | None) -> str:
    """Milliseconds as text; None (nothing was answered) as a dash."""
    return "-" if value is None else f"{value:.0f}"


def _elsewhere(part: dict[str, Any], first: dict[str, Any]) -> str:
    """When and on what a part was measured, if that differs from the first part."""
    if any(part[name] != first[name] for name in ("machine", "versions")):
        return f" ({conditions(part | {'warning': None})})"
    return f" ({part['date']})" if part["date"] != first["date"] else ""


def faults_table(result: dict[str, Any]) -> list[str]:
    faults, restarts, soak = parts = [result[name] for name in ("faults", "restarts", "soak")]
    lines = [
        f"**What {faults['servers']} servers survive** ({conditions(faults | {'warning': None})}).",
        f"{faults['requests_per_s']:g} requests/s, half gRPC and half HTTP, each to be answered within",
        f"{faults['deadline_s']:g} s, `retries={faults['retries']}`. The preprocess step in processes of its own,",
        "as NVIDIA's container has it.",
        "Other work ran beside: the counts hold, the times are too long." if any(p["warning"] for p in parts) else "",
        "",
    ]
    header = ["to one server", "through", "sent", "answered in time", "failed", "p50, p99, longest: ms", "back after"]
    rows = []
    left: Counter[str] = Counter()
    for row in faults["rows"]:
        left.update(row["left_over"])
        failed = ", ".join(f"{count} {kind}" for kind, count in row["failed"].items()) or "0"
        cells = [row["fault"], row["path"], str(row["sent"]), str(row["answered_in_time"]), failed]
        cells += [", ".join(_milliseconds(row[key]) for key in ("p50_ms", "p99_ms", "longest_ms"))]
        cells += ["never" if row["back_s"] is None else f"{row['back_s']:.1f} s"]
        rows.append(cells)
    more = ", ".join(f"{name} {count}" for name, count in left.items())
    ways = ", ".join(f"{count} {way}" for way, count in restarts["ways"].items())
    counts = ", ".join(f"{name} {count} to {restarts['last'][name]}" for name, count in restarts["first"].items())
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in soak["outcomes"].items())
    rss = soak["rss_mib"]
    restarted, soaked = (_elsewhere(part, faults) for part in (restarts, soak))
    lines += [*table(header, rows), "", f"- More after these faults than before: {more}."]
    lines += [
        f"- **{restarts['restarts']} restarts** ({ways}), {restarts['seconds_median']:.1f} s each: {counts}{restarted}."
    ]
    lines += [
        f"- **{soak['requests']} requests** to one server{soaked}: {outcomes}; {soak['requests_per_s']:.0f} requests/s,"
    ]
    lines += [f"  p50 {soak['p50_ms']:.1f} ms, p99 {soak['p99_ms']:.1f} ms. Its memory: {rss['after_warm_up']:.1f} MiB"]
    lines += [
        f"  after the first tenth, {rss['at_the_end']:.1f} MiB in the last ({soak['rss_growth_percent']:+.2f} %)."
    ]
    return [line.replace("shm_files", "shared-memory files").replace("folders", "private folders") for line in lines]
