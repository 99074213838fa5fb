"""Rules and dashboard: queries that parse, over metrics that tritonserver has, alerts that fire when they should."""

import json
import re
import shutil
import subprocess

import promql_parser
import pydantic
import pytest
import yaml
from configured import AdapterValues, DashboardProviders, DataSources
from manifests import DEPLOY, RULES, dashboard, queries, rules, selectors

from benchmarks.programs import find_program, missing

ALERTS_TEST = DEPLOY / "prometheus" / "alerts_test.yml"
needs_promtool = pytest.mark.skipif(find_program("promtool") is None, reason=missing("promtool"))


@pytest.mark.parametrize("place", queries())
def test_queries_parse_and_name_their_metrics(place):
    found = selectors(queries()[place])
    assert found
    for metric, labels in found:
        assert metric == "up" or metric.startswith("nv_"), metric
        assert place.startswith("adapter") or labels["job"][1] == "widefield"


def test_the_parser_refuses_nonsense():
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (rate(up[5m])")


def test_panels_have_places_of_their_own():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def lost(given, kept, place="dashboard"):
    """The paths that `given` has and `kept` does not."""
    if isinstance(given, dict):
        for key, value in given.items():
            here = f"{place}.{key}"
            yield from lost(value, kept[key], here) if isinstance(kept, dict) and key in kept else [here]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{place}[{index}]")
    elif given != kept:
        yield place


def test_grafana_knows_every_field_of_the_dashboard():
    """Grafana's own types keep only the fields that they know: a misspelt one would not come back."""
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's types need Python 3.11")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()

    def missing_of(content):
        return list(lost(content, json.loads(JSONEncoder().encode(Dashboard.from_json(content)))))

    assert missing_of(dashboard()) == []
    wrong = dashboard()
    wrong["panels"][0]["targets"][0]["exprr"] = "up"
    wrong["panels"][1]["fieldConfig"]["defaults"]["custom"]["fillOpasity"] = 10
    wrong["refreshh"] = "30s"
    assert missing_of(wrong) == [
        "dashboard.panels[0].targets[0].exprr",
        "dashboard.panels[1].fieldConfig.defaults.custom.fillOpasity",
        "dashboard.refreshh",
    ]


CONFIGURED = {
    "helm/prometheus-adapter-values.yaml": AdapterValues,
    "grafana/provisioning/datasources/prometheus.yml": DataSources,
    "grafana/provisioning/dashboards/widefield.yml": DashboardProviders,
}


def keys(content, path=()):
    """The path of every key of a nested document."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        if isinstance(content, dict):
            yield (*path, key)
        yield from keys(value, (*path, key))


@pytest.mark.parametrize("name", CONFIGURED)
def test_adapter_and_grafana_know_every_field_of_their_configuration(name):
    text = (DEPLOY / name).read_text()
    CONFIGURED[name].model_validate(yaml.safe_load(text))
    misspelt = 0
    for *above, key in keys(yaml.safe_load(text)):
        if above[-1:] == ["overrides"]:
            continue  # its keys are the labels of a series
        wrong = yaml.safe_load(text)
        place = wrong
        for step in above:
            place = place[step]
        place[f"{key}s"] = place.pop(key)
        with pytest.raises(pydantic.ValidationError, match=f"{key}s"):
            CONFIGURED[name].model_validate(wrong)
        misspelt += 1
    assert misspelt >= 7


def test_every_alert_is_tested_and_has_a_severity():
    tested = set(re.findall(r"alertname: (\w+)", ALERTS_TEST.read_text()))
    assert {rule["alert"] for rule in rules()} == tested
    assert {rule["labels"]["severity"] for rule in rules()} <= {"critical", "warning", "info"}


def test_every_alert_names_the_section_that_says_what_to_do():
    for rule in rules():
        page, _, section = rule["annotations"]["runbook"].partition("#")
        titles = re.split(r"^## (.*)\n", (DEPLOY.parent / page).read_text(), flags=re.MULTILINE)[1:]
        text = dict(zip((title.lower().replace(" ", "-") for title in titles[::2]), titles[1::2], strict=True))[section]
        assert re.search(rf"^\| [^|]*\b{rule['alert']}\b", text, re.MULTILINE), rule["alert"]


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", RULES), ("test", "rules", ALERTS_TEST)],
    ids=["rules", "alerts fire"],
)
def test_promtool(arguments):
    done = subprocess.run([find_program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_reads_the_configuration(tmp_path):
    shutil.copy(DEPLOY / "prometheus" / "prometheus.yml", tmp_path)
    shutil.copy(RULES, tmp_path)  # beside it, as compose mounts them
    command = [find_program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SERVED = {  # what tritonserver counts -> by how much that grows every 15 seconds
    'request_success{model="classifier"}': 150,
    'request_success{model="classifier_explained"}': 15,
    'request_success{model="preprocess"}': 225,
    'request_success{model="backbone"}': 120,
    'request_failure{model="backbone", reason="REJECTED"}': 30,
    'request_failure{model="classifier", reason="OTHER"}': 60,
    'queue_duration_us{model="backbone"}': 120 * 700,
    'compute_input_duration_us{model="backbone"}': 120 * 20,
    'compute_infer_duration_us{model="backbone"}': 120 * 3000,
    'compute_output_duration_us{model="backbone"}': 120 * 40,
    'count{model="backbone"}': 480,
    'exec_count{model="backbone"}': 60,
}
MEASURED = {
    'up{instance="a"}': 1,
    'up{instance="b"}': 0,
    'nv_inference_request_summary_us{instance="a", model="classifier", quantile="0.99"}': 5000,
    'nv_inference_request_summary_us{instance="b", model="classifier", quantile="0.99"}': 9000,
    'nv_inference_request_summary_us{instance="b", model="backbone", quantile="0.99"}': 9999,
    'nv_inference_pending_request_count{instance="a", model="preprocess"}': 6,
    'nv_cpu_utilization{instance="a"}': 0.5,
    'nv_cpu_memory_used_bytes{instance="a"}': 3e9,
    'nv_cpu_memory_total_bytes{instance="a"}': 4e9,
    'nv_gpu_utilization{instance="a"}': 0.9,
    'nv_gpu_memory_used_bytes{instance="a"}': 1e10,
    'nv_gpu_memory_total_bytes{instance="a"}': 8e10,
    'nv_gpu_power_usage{instance="a"}': 300,
}
SHOWN = {  # a panel -> its unit and what each of its queries then gives
    "Requests answered": ("reqps", [11]),
    "Requests failed, by step and reason": ("reqps", [2, 5]),  # by the backbone; images that it never saw
    "Servers": ("short", [1, 2]),
    "Latency of a request": ("\u00b5s", [9000]),
    "Waiting in the queue": ("short", [6]),
    "Time in the queue, mean of a request": ("\u00b5s", [700]),
    "Compute by step, mean of a request": ("\u00b5s", [20, 3000, 40]),
    "Batch size, mean": ("short", [8]),
    "CPU and memory of the machine": ("percentunit", [0.5, 0.75]),
    "GPU utilisation": ("percentunit", [0.9]),
    "GPU memory used": ("percentunit", [0.125]),
    "GPU power": ("watt", [300]),
}


@needs_promtool
def test_each_panel_shows_what_its_title_says(tmp_path):
    counted = {f'nv_inference_{name[:-1]}, instance="a"}}': f"0+{step}x40" for name, step in SERVED.items()}
    series = counted | {name: f"{value}x40" for name, value in MEASURED.items()}
    samples = [{"series": f'{name[:-1]}, job="widefield"}}', "values": values} for name, values in series.items()]
    panels = {panel["title"]: panel for panel in dashboard()["panels"]}
    assert {title: panel["fieldConfig"]["defaults"]["unit"] for title, panel in panels.items()} == {
        title: unit for title, (unit, _) in SHOWN.items()
    }
    expected = []
    for title, (_, values) in SHOWN.items():
        for target, value in zip(panels[title]["targets"], values, strict=True):
            query = queries()[f"panel {title} {target['refId']}"]
            one = {"expr": f"round(sum({query}), 0.001)", "eval_time": "10m"}  # rate() is not to the last bit
            expected.append(one | {"exp_samples": [{"labels": "{}", "value": value}]})
    test = {"interval": "15s", "input_series": samples, "promql_expr_test": expected}
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"tests": [test]}))
    command = [find_program("promtool"), "test", "rules", str(tmp_path / "panels.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
