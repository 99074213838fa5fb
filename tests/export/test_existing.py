"""A build into an existing repository: edited limits are kept, and versions are removed for the reason it prints."""

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from built_repository import digest

from export import existing
from export.configs import EMBEDDED, ServingSpec
from export.repository import RepositoryError, _exchange, write_repository
from server.compatibility import LIMITS, check_compatible
from server.private_folder import hold
from server.repository import read_repository
from server.versions import KEPT, Versions

SPEC = ServingSpec(image_size=32, resize_size=36, interpolation="bicubic", num_classes=2, threads=2)
LABELS = ["cat", "dog"]
FILES = ("config.pbtxt", EMBEDDED)


def write_backbone(folder: Path) -> dict[str, Any]:
    zipfile.ZipFile(folder / "model.pt", "w").close()
    return {}


def build(output: Path, spec: ServingSpec = SPEC, labels: list[str] = LABELS) -> tuple[int, list[str]]:
    return write_repository(output, spec, labels, write_backbone, b"picture")


def versions(output: Path) -> set[str]:
    return {path.name for path in (output / "backbone").glob("[0-9]*")}


def limit(output: Path, name: str = "max_pixels") -> list[int]:
    """The limit in config.pbtxt and in the config that the embedded server reads instead."""
    texts = [(output / "preprocess" / file).read_text() for file in FILES]
    return [int(re.search(rf'"{name}"\s+value \{{\s+string_value: "(\d+)"', text)[1]) for text in texts]  # type: ignore[index]


def set_limit(output: Path, value: object, *files: str, name: str = "max_pixels") -> None:
    for file in files:
        path = output / "preprocess" / file
        path.write_text(path.read_text().replace(f'"{getattr(SPEC, name)}"', f'"{value}"'))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    assert build(tmp_path / "new" / "models") == (1, [])
    return tmp_path / "new" / "models"


def test_limits_stay_and_cost_no_version(output: Path) -> None:
    set_limit(output, 4_000_000, *FILES)
    set_limit(output, " 500000 ", *FILES, name="max_file_bytes")
    for version in (2, 3):
        assert build(output) == (version, ["kept max_file_bytes 500000", "kept max_pixels 4000000"])
    assert versions(output) == {"1", "2", "3"}
    assert limit(output) == [4_000_000, 4_000_000]
    assert limit(output, "max_file_bytes") == [500_000, 500_000]
    assert read_repository(output).overridden == ()


@pytest.mark.parametrize("first_line", [True, False])
def test_each_config_keeps_its_own_limit(first_line: bool, output: Path) -> None:
    set_limit(output, 4_000_000, EMBEDDED)
    if not first_line:
        path = output / "preprocess" / EMBEDDED
        path.write_text(path.read_text().partition("\n")[2])
    for version in (2, 3):
        said = f"kept max_pixels 89478485 in preprocess/config.pbtxt, 4000000 in preprocess/{EMBEDDED}"
        assert build(output) == (version, [said])
        assert limit(output) == [SPEC.max_pixels, 4_000_000]
        assert read_repository(output).overridden == ()


def test_an_edit_that_the_embedded_server_does_not_read_is_still_told(output: Path) -> None:
    set_limit(output, 4_000_000, "config.pbtxt")
    for version in (2, 3):
        assert build(output)[0] == version
        assert limit(output) == [4_000_000, SPEC.max_pixels]
        (told,) = read_repository(output).overridden
        assert told.startswith("preprocess/config.pbtxt was changed")


def test_where_config_pbtxt_is_all_there_is_its_limit_is_the_embedded_servers_too(output: Path) -> None:
    set_limit(output, 4_000_000, "config.pbtxt")
    (output / "preprocess" / EMBEDDED).unlink()
    assert build(output) == (2, ["kept max_pixels 4000000"])
    assert limit(output) == [4_000_000, 4_000_000]


def take_limit_out(output: Path, file: str) -> None:
    path = output / "preprocess" / file
    path.write_text(re.sub(r'parameters \{\s+key: "max_pixels".*?\}\s*\}\n', "", path.read_text(), flags=re.DOTALL))
    assert "max_pixels" not in path.read_text()


def test_a_limit_that_was_taken_out_is_the_default(output: Path) -> None:
    for file in FILES:
        take_limit_out(output, file)
    assert build(output) == (2, [])
    assert limit(output) == [SPEC.max_pixels, SPEC.max_pixels]


def test_a_limit_that_the_embedded_server_alone_has_not_is_its_default(output: Path) -> None:
    """The embedded server was serving with the default, whatever config.pbtxt says."""
    set_limit(output, 4_000_000, "config.pbtxt")
    take_limit_out(output, EMBEDDED)
    assert build(output)[0] == 2
    assert limit(output) == [4_000_000, SPEC.max_pixels]


def test_without_the_preprocess_step_nothing_is_built(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel lacks it."""
    before = digest(output)
    monkeypatch.setattr("export.repository.PREPROCESS_SOURCE", output / "nowhere")
    with pytest.raises(RepositoryError, match=r"nowhere has no \*\.py: run build_models\.py in a checkout"):
        build(output)
    assert digest(output) == before


@pytest.mark.parametrize("value", ["4e6", "0", "-1", "\u00b2"])
def test_a_limit_that_cannot_be_is_refused(output: Path, value: str) -> None:
    set_limit(output, value, EMBEDDED)
    before = digest(output)
    message = rf'preprocess/{EMBEDDED}: max_pixels is "{value}": write a whole number of 1 or more'
    with pytest.raises(RepositoryError, match=message):
        build(output)
    assert digest(output) == before


@pytest.mark.parametrize("file", ["backbone/config.pbtxt", "preprocess/config.pbtxt", f"preprocess/{EMBEDDED}"])
@pytest.mark.parametrize("content", [b"name: {", b"\xff"])
def test_a_config_that_is_damaged_is_named(output: Path, content: bytes, file: str) -> None:
    (output / file).write_bytes(content)
    with pytest.raises(RepositoryError, match=rf"models/{file} cannot be read \(.*\): correct it, or remove it"):
        build(output)


REASONS = {
    "outputs FP32 logits[2] and FP32 class_map[3, 3] (was FP32 logits[2])": replace(SPEC, class_map=(3, 3)),
    "backend onnxruntime (was pytorch)": replace(SPEC, backbone_backend="onnxruntime"),
    "resize_size 40 (was 36)": replace(SPEC, resize_size=40),
    "input UINT8 pixels[48, 48, 3] (was UINT8 pixels[32, 32, 3]), image_size 48 (was 32)": replace(SPEC, image_size=48),
}


@pytest.mark.parametrize(("reason", "spec"), REASONS.items())
def test_what_a_build_cannot_serve_goes_for_the_reason_it_says(output: Path, reason: str, spec: ServingSpec) -> None:
    """Version numbers keep rising when the format changes there and back: a number never means two sets of weights."""
    build(output)
    assert build(output, spec) == (3, [f"removed version 1, 2: {reason}"])
    assert build(output, spec) == (4, [])
    number, (said,) = build(output)
    assert (number, versions(output)) == (5, {"5"})
    assert said.startswith(f"removed version 3, 4: {reason.split()[0]}")


def test_a_build_into_a_served_folder_says_so(output: Path) -> None:
    """The server's next start makes it live, unproven."""
    server = Owner()
    let_go = hold(server, output)  # as server.runtime does
    number, (said,) = build(output)
    assert said.startswith(f"a server reads {output} and takes version {number} when it starts again: ")
    assert build(output) == (number + 1, []), "that folder is gone"
    let_go()
    let_go = hold(server, output)
    let_go()
    assert build(output)[1] == []


class Owner:
    """The process that holds a folder's lock."""


def test_other_labels_are_a_reason(output: Path) -> None:
    assert build(output, labels=["dog", "cat"]) == (2, ["removed version 1: other labels"])


@pytest.mark.parametrize("label", ["", " ", "dog\ncat"])
def test_a_label_that_is_no_line_is_named(output: Path, label: str) -> None:
    with pytest.raises(RepositoryError, match=re.escape(f"label 1 is {label!r}: a label is one line and not empty")):
        build(output, labels=["cat", label])


def test_a_link_to_a_repository_stays_a_link(output: Path) -> None:
    link = output.with_name("link")
    link.symlink_to(output.name)
    assert build(link) == (2, [])
    assert link.is_symlink()
    assert versions(output) == {"1", "2"}


def test_what_cannot_take_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"/b \(No such file or directory\): if it is a mount point, build"):
        _exchange(tmp_path / "a", tmp_path / "b")


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(RepositoryError, match=r"^/proc/none/models cannot be written \(.*'/proc/none'\): make room"):
        build(Path("/proc/none/models"))


def test_labels_that_hold_another_line_separator_fit(output: Path) -> None:
    """tritonserver splits labels at newlines only: what is built can be released."""
    build(output, labels=["caf\u00e9\u2028au lait", "th\u00e9\x85"])
    check_compatible(output, output)


def test_equal_labels_are_equal_in_any_locale(output: Path) -> None:
    labels = ["caf\u00e9", "th\u00e9"]
    build(output, labels=labels)
    code = f"from test_existing import *; print(existing.misfit(Path({str(output)!r}), SPEC, {labels!a}))"
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    path = {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | locale | path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_preparation_that_was_set_by_hand_is_named(output: Path) -> None:
    path = output / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text().replace('"true"', '"false"'))
    assert build(output) == (2, ["removed version 1: reduced_decoding true (was false)"])


@pytest.mark.parametrize("file", ["backbone/config.pbtxt", "preprocess/config.pbtxt", "classifier/labels.txt"])
def test_versions_that_nothing_tells_about_go(output: Path, file: str) -> None:
    (output / file).unlink()
    said = f"removed version 1: {output}/{file}, which says how they were served, is missing"
    assert build(output) == (2, [said])


def test_the_server_counts_versions_and_limits_alike(tmp_path: Path) -> None:
    """Neither package imports the other."""
    for name in ("1", "3", "10", "0", "011", "\u00b2", "\u0661\u0662", "4x", ".12.withdrawn.old", ".013.withdrawn"):
        (tmp_path / "backbone" / name).mkdir(parents=True)
    (tmp_path / "backbone" / "14").touch()
    served = Versions(tmp_path)
    served.withdraw(10)
    assert existing.version_numbers(served.model) == served.numbers() == [1, 3]
    assert existing.unused_number(served.model) == served.unused_number() == 11
    assert existing.KEPT_VERSIONS == KEPT
    assert existing.LIMITS == LIMITS
