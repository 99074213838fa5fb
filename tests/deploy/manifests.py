"""Readers of what deploy/ holds: the image's files, the chart rendered, the queries of rules and dashboard."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import helm_call
import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = DEPLOY / "image"
CHART = DEPLOY / "helm" / "widefield"
NOTES = "widefield/templates/NOTES.txt"
RULES = CHART / "files" / "alerts.yml"
DASHBOARD = CHART / "files" / "dashboard.json"
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}  # as Grafana fills them in


class Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML would take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return super().construct_mapping(node, deep)


def lay_out(folder):
    """Makes the image's /opt/widefield: what the Dockerfile copies from the checkout, and empty libraries."""
    for name in ("libwidefield.so", "libwidefield_fixes.so"):
        subprocess.run(["g++", "-shared", "-x", "c++", os.devnull, "-o", folder / name], check=True)
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and words[-1] == "/opt/widefield/" and not words[1].startswith("--from"):
            for source in words[2:-1]:
                shutil.copy2(ROOT / source, folder)


def render(values=None, release="demo"):
    """Every manifest of the chart, as (kind, name) -> document."""
    texts = helm_call.render(CHART, values or {}, release)
    texts.pop(NOTES)
    documents = [document for text in texts.values() for document in yaml.load_all(text, Loader) if document]
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(found) == len(documents)
    return found


def one(manifests, kind):
    (document,) = [document for (its_kind, _), document in manifests.items() if its_kind == kind]
    return document


def container(manifests):
    (only,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads(DASHBOARD.read_text())


def queries():
    """The place of each query -> the query."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            found[f"panel {panel['title']} {target['refId']}"] = text
    adapter = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter-values.yaml").read_text())["rules"]["custom"]
    for number, rule in enumerate(adapter):
        found[f"adapter series {number}"] = rule["seriesQuery"]
        series = rule["name"]["as"]
        text = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        for model in ("preprocess", "backbone"):
            found[f"adapter metric {number} of {model}"] = text.replace("<<.LabelMatchers>>", f'model="{model}"')
    return found


def selectors(query):
    """Every selector in a query, as (metric, {label: (operator, value)})."""
    found = []

    def visit(expression):
        if isinstance(expression, promql_parser.VectorSelector):
            labels = {matcher.name: (str(matcher.op), matcher.value) for matcher in expression.matchers.matchers}
            found.append((expression.name, labels))

    promql_parser.walk(promql_parser.parse(query), visit)
    return found
