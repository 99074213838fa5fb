"""The pages hold what the results files say: nobody edits a figure by hand."""

from pathlib import Path

import pytest

from benchmarks import report


@pytest.mark.parametrize("page", list(report.pages()), ids=lambda page: page.name)
def test_the_committed_page_is_the_reports(page: Path) -> None:
    text = report.written(page, report.pages()[page])
    assert page.read_text() == text
    assert text.count("|---") > 0
