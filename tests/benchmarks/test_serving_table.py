"""The verdicts of the comparison with other servers, from runs made by hand."""

import pytest

from benchmarks.serving import table
from benchmarks.serving.__main__ import check


def run(server, closed_1, closed_8, repeat=0, errors=0):
    """Loads as (images a second, p50, p99)."""
    loads = {
        name: {"answers": 9, "errors": errors, "images_per_s": rate, "p50_ms": p50, "p99_ms": p99}
        for name, (rate, p50, p99) in {"closed 1": closed_1, "closed 8": closed_8}.items()
    }
    loads["open 50%"] = {
        "answers": 9,
        "errors": 0,
        "images_per_s": 5,
        "p50_ms": 9,
        "p99_ms": 999,
        "sender_late_ms": repeat,
    }
    known = {"model": "nano", "server": server, "repeat": repeat, "cold_start_s": 2.0, "memory_mib": 100.0}
    return {**known, "loads": loads}


def test_medians_over_repeats():
    runs = [run("ray", (rate, 1, 2), (20, 5, 9), repeat, errors=1) for repeat, rate in enumerate((10, 30, 11))]
    (row,) = table.rows(runs)
    closed = {"errors": 3, "images_per_s": 11, "p50_ms": 1, "p99_ms": 2, "images_per_s_range": [10, 30]}
    assert row["loads"]["closed 1"] == closed
    assert row["loads"]["open 50%"]["sender_late_ms"] == 2


def test_a_peer_that_wins_is_named():
    """Widefield's 120 images/s come at a worse p99 than the peer's best: they do not count."""
    rows = table.rows([run("widefield", (50, 5.0, 8), (120, 60, 90)), run("ray", (40, 4.0, 8), (100, 70, 80))])
    (verdict,) = table.verdicts(rows)
    assert (verdict["best_peer"], verdict["throughput_ratio_at_equal_p99"]) == ("ray", 0.5)
    assert (verdict["ms_behind_it_at_1"], verdict["peer_wins"]) == (1.0, ["throughput", "latency"])
    result = {"rows": rows, "verdicts": [verdict], "warning": "others ran", "seconds": 1.5}
    text = "\n".join(table.lines(result, "here"))
    assert "one caller waits 1.0 ms more than with ray: a peer wins on throughput and latency" in text
    assert "others ran" in text
    assert "medians of 1 repeats of 1.5 s a load" in text
    assert "was 0 ms late at worst" in text


def test_no_peer_wins():
    """No peer is faster at a p99 that is no worse than Widefield's."""
    rows = table.rows([run("widefield", (50, 3.0, 8), (120, 60, 80)), run("ray", (40, 4.0, 8), (100, 70, 80))])
    (verdict,) = table.verdicts(rows)
    assert (verdict["throughput_ratio_at_equal_p99"], verdict["peer_wins"]) == (1.2, [])
    text = table.lines({"rows": rows, "verdicts": [verdict], "warning": None, "seconds": 1.5}, "here")[-1]
    assert "one caller waits 1.0 ms less than with ray: no peer wins" in text


def test_without_our_kernels_only_such_peers_count():
    ours, same = run("widefield", (50, 3.0, 8), (120, 60, 70)), run("ray-workers", (60, 2.0, 8), (200, 70, 80))
    rows = table.rows([ours, same, run("ray-plain", (40, 4.0, 8), (100, 70, 80))])
    (verdict,) = table.verdicts(rows, "plain")
    assert (verdict["best_peer"], verdict["throughput_ratio_at_equal_p99"]) == ("ray-plain", 1.2)
    assert table.verdicts(rows)[0]["best_peer"] == "ray-workers"


def test_a_server_without_answers_is_no_winner():
    silent = run("ray", (0, None, None), (0, None, None))
    rows = table.rows([run("widefield", (50, 3.0, 8), (120, 60, 70)), silent, run("fastapi", (9, 4.0, 8), (9, 4, 80))])
    assert table.verdicts(rows)[0]["best_peer"] == "fastapi"


@pytest.mark.parametrize("wrong", [{"index": 3}, {"probability": 0.5}])
def test_other_answers_end_the_run(wrong):
    right = [0.4, 0.3, 0.1, 0.08, 0.07, 0.05]
    answer = [{"index": index, "probability": value} for index, value in enumerate(right[:5])]
    check("ray", answer, right)
    with pytest.raises(SystemExit, match="ray"):
        check("ray", [{**answer[0], **wrong}, *answer[1:]], right)
