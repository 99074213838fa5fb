"""benchmarks.overload: what a load is compared with, and which turn is told."""

from benchmarks.overload import of_peak


def test_each_turn_is_compared_with_its_own_closed_loops():
    rates = (10.0, 18.0, 12.0, 5.0)
    rows = [
        {"load": 2.0, "goodput_per_s": rate, "sent": number, "outcomes": {"late": number}}
        for number, rate in enumerate(rates)
    ]
    told = of_peak(rows, [10.0, 20.0, 10.0, 10.0])
    assert told["goodput_of_peak_each"] == [1.0, 0.9, 1.2, 0.5]
    assert told["goodput_of_peak"] == 0.9  # the lower one of the two in the middle
    assert told["sent"] == 1  # the figures of that very turn
    assert told["outcomes_each"] == [{"late": number} for number in range(4)]  # what became of the others' requests
