"""What the pages name exists: linked files and headings, modules, and README's tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in ROOT.glob("**/*.md") if not {".venv", ".venv-page", "build", "runs"} & {*path.parts})


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_modules_of_the_architecture() -> None:
    """Each name in the table of chains is a file of the packages that its row is about."""
    (table,) = re.findall(
        r"^## Where the code is read$(.*?)^## ", (ROOT / "docs/architecture.md").read_text(), re.M | re.S
    )
    rows = [line.split("|")[1:3] for line in table.splitlines() if "->" in line or "`classifier`" in line]
    assert len(rows) >= 9
    files = {
        path.stem
        for folder in ("kernels", "models", "training", "export", "server", "client", "loadtest")
        for path in (ROOT / folder).rglob("*.[pc]*")
    }
    for _, chain in rows:
        for name in re.findall(r"`([a-z_]+)(?:\.py|\.cpp)?`", chain):
            assert name in files or (ROOT / name).exists(), name


def test_the_tree_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    (tree,) = re.findall(r"^## What is where$(.*?)^RepLKNet", text, re.M | re.S)
    named = re.findall(r"^    (\S+)", tree, re.M)
    assert len(named) >= 14
    for name in named:
        assert (ROOT / name).exists(), name
