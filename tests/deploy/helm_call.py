"""Helm's own engine in a process for each call: its Go runtime takes over the signals of the process that it is in, and
brings the tests' process down. Run as a script it prints JSON."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class ValuesError(Exception):
    """The values do not fit the chart's schema, or a template says why it does not take them."""


def render(chart: Path, values: dict[str, Any], release: str) -> dict[str, str]:
    """{template: its documents}. Raises `ValuesError`."""
    return dict(_call("render", str(chart), json.dumps(values), release))


def lint(chart: Path) -> dict[str, Any]:
    return _call("lint", str(chart))


def validate(chart: Path, values: dict[str, Any]) -> None:
    """Raises `ValuesError`."""
    _call("validate", str(chart), json.dumps(values))


@functools.cache
def _call(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise ValuesError(answer["refused"])
    return answer["result"]


def _answer(action: str, chart: str, values: str = "{}", release: str = "") -> dict[str, Any]:
    import helm_python as helm

    if action == "lint":
        return {"result": helm.lint(chart, strict=True)}
    with helm.Chart.load(chart) as loaded:
        try:
            if action == "render":
                return {"result": loaded.render(json.loads(values), name=release, namespace="production")}
            loaded.validate_schema(loaded.merge_values(json.loads(values)))
        except (helm.HelmValuesError, helm.HelmRenderError) as error:
            return {"refused": str(error)}
        return {"result": None}


if __name__ == "__main__":
    print(json.dumps(_answer(*sys.argv[1:])))
