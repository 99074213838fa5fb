"""The Helm chart, rendered by Helm's own engine and held to Kubernetes' schemas: all but its pods."""

import re

import helm_call
import kubernetes_validate
import pytest
import yaml
from chart_values import ALL, CASES
from manifests import CHART, DASHBOARD, DEPLOY, NOTES, RULES, one, render


@pytest.mark.parametrize("version", ["1.32", "1.37"])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_kubernetes_accepts_every_manifest(values, version):
    checked = 0
    for document in render(values).values():
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 5


def test_a_misspelt_field_is_found():
    deployment = one(render(), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PrometheusRule"])
def test_the_operator_accepts_its_resources(kind):
    from cloudcoil.models.prometheus_operator import v1 as operator  # 4 s: not in every process of the tests

    document = one(render(ALL), kind)
    kept = getattr(operator, kind).model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert kept["spec"] == document["spec"]  # an unknown field would be missing


def test_lint():
    report = helm_call.lint(CHART)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 3},
        {"replicas": 0},
        {"probes": {"timeoutSeconds": 5}},
        {"gpu": {"count": "one"}},
        {"resources": {"limits": {"memory": "6 GB"}}},
        {"image": {"digest": "sha256:short"}},
        {"modelRepository": {"subPath": "../other"}},
        {"extraArgs": ["log-verbose"]},
        {"extraEnv": [{"value": "::"}]},
        {"extraEnv": [{"name": "WIDEFIELD_HOST", "valeu": "::"}]},
        {"podLabels": {"team": 1}},
        {"initContainers": [{"name": "fetch"}]},
        {"extraVolumes": [{"name": "models", "emptyDir": {}}]},
        {"extraVolumeMounts": [{"name": "traces"}]},
        {"networkPolicy": {"egress": {}}},
        {"service": {"metrics": None}},
        {"service": {"http": 8001}},  # gRPC's
        {"service": {"type": "ExternalName"}},
        {"fullnameOverride": "Widefield"},
        {"nameOverride": "wide_field"},
        {"topologySpreadConstraints": [{"maxSkew": 1}]},
        {"rollingUpdate": {"maxSurge": "one"}},
        {"modelRepository": {"inImage": True, "subPath": "2026-11-24"}},
        {"modelRepository": {"inImage": True, "volume": {"emptyDir": {}}}},
        {"monitoring": {"runbookBase": "wiki"}},
        {"extraManifests": [{"kind": "GRPCRoute"}]},
        {"resources": None},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_wrong_value_is_refused(values):
    with pytest.raises(helm_call.ValuesError):
        render(values)


@pytest.mark.parametrize("name", ["autoscaling", "gpu", "podLabels", "podSecurityContext", "probes", "tls"])
def test_what_a_null_has_removed_is_named(name):
    with pytest.raises(helm_call.ValuesError, match=f"missing property '{name}'"):
        render({name: None})


def test_names_stay_within_their_length():
    manifests = render(ALL, release="r" * 53)
    names = {name for _, name in manifests}
    assert max(map(len, names)) <= 63
    assert len(names) > 2


def test_fewer_pods_at_most_than_at_least_are_refused():
    said = "autoscaling.maxReplicas is 3, less than autoscaling.minReplicas, 5: raise the one or lower the other"
    with pytest.raises(helm_call.ValuesError, match=said):
        render({"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 3}})
    with pytest.raises(helm_call.ValuesError, match=r"maxReplicas is 10, less than autoscaling\.minReplicas, 12"):
        render({"autoscaling": {"enabled": True, "minReplicas": 12}})  # than the chart's own
    assert render({"autoscaling": {"enabled": False, "minReplicas": 12}})
    for least, most in ((3, 3), (3, 7)):
        values = {"autoscaling": {"enabled": True, "minReplicas": least, "maxReplicas": most}}
        spec = one(render(values), "HorizontalPodAutoscaler")["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (least, most)


def test_names_follow_the_release():
    assert ("Deployment", "demo-widefield") in render()
    assert ("Deployment", "widefield-eu") in render(release="widefield-eu")


def test_names_as_they_are_given():
    for values, name in (
        ({"fullnameOverride": "mine"}, "mine"),
        ({"nameOverride": "wide"}, "demo-wide"),
        ({"nameOverride": "demo"}, "demo"),
    ):
        manifests = render(values)
        assert {each for _, each in manifests} == {name, *(f"{name}-{part}" for part in ("grpc", "metrics", "test"))}
        labels = one(manifests, "Deployment")["metadata"]["labels"]
        assert labels == one(render(), "Deployment")["metadata"]["labels"]  # the alerts' job


def test_the_service_is_of_the_kind_that_is_asked_for():
    service, grpc, metrics = (render(ALL)["Service", f"demo-widefield{name}"] for name in ("", "-grpc", "-metrics"))
    assert (service["spec"]["type"], service["metadata"]["annotations"]) == ("LoadBalancer", {"balancer": "internal"})
    assert grpc["spec"]["clusterIP"] == "None"
    assert "type" not in metrics["spec"]  # they never leave the cluster
    assert not any("annotations" in each["metadata"] for each in (grpc, metrics))
    plain = render()["Service", "demo-widefield"]
    assert plain["spec"]["type"] == "ClusterIP"
    assert [port["name"] for port in plain["spec"]["ports"]] == ["http", "grpc"]
    assert "annotations" not in plain["metadata"]


def test_the_documented_rollouts_name_the_deployment():
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    rolled = re.findall(r"kubectl\s+--namespace\s+serving\s+rollout\s+\w+\s+([\w/]+)", page)
    assert rolled == ["deployment/widefield"] * 2
    assert ("Deployment", "widefield") in render(release="widefield")  # as `helm upgrade --install` there


def test_everything_selects_the_pods():
    manifests = render(ALL)
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    services = [document for (kind, _), document in manifests.items() if kind == "Service"]
    selected = [one(manifests, "Deployment")["spec"]["selector"]["matchLabels"]]
    selected += [one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    selected += [one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    selected += [service["spec"]["selector"] for service in services]
    for selector in selected:
        assert selector
        assert selector.items() <= labels
    wanted = one(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    (scraped,) = [service for service in services if wanted <= service["metadata"]["labels"].items()]
    monitor = one(manifests, "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    assert "metrics" in [port["name"] for port in scraped["spec"]["ports"]]
    assert scraped["metadata"]["labels"][monitor["jobLabel"]] == "widefield"  # the alerts' job


def test_autoscaler():
    manifests = render({"autoscaling": {"enabled": True}})
    scaler, deployment = one(manifests, "HorizontalPodAutoscaler"), one(manifests, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # an upgrade would undo the autoscaler's work
    adapter = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter-values.yaml").read_text())
    known = [rule["name"]["as"] for rule in adapter["rules"]["custom"]]
    for rule in adapter["rules"]["custom"]:
        assert rule["resources"]["overrides"] == {name: {"resource": name} for name in ("namespace", "pod")}
    for metric, model in zip(scaler["spec"]["metrics"], ("preprocess", "backbone"), strict=True):
        assert metric["pods"]["metric"]["selector"] == {"matchLabels": {"model": model}}
        assert metric["pods"]["metric"]["name"] in known
        assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "8"}
    waits = {way: each["stabilizationWindowSeconds"] for way, each in scaler["spec"]["behavior"].items()}
    assert waits["scaleUp"] == 0 < waits["scaleDown"]  # a queue that is empty for a moment ends no pod
    fixed = render(CASES["fixed size"])
    assert not [kind for kind, _ in fixed if kind == "HorizontalPodAutoscaler"]
    assert one(fixed, "Deployment")["spec"]["replicas"] == 3


def test_network_policy_closes_what_is_not_named():
    policy = one(render(CASES["closed"]), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    assert policy["egress"] == []


def test_rules_and_dashboard_are_the_files():
    manifests = render(ALL)
    assert one(manifests, "PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())
    assert one(manifests, "ConfigMap")["data"]["widefield.json"].strip() == DASHBOARD.read_text().strip()
    assert one(manifests, "ConfigMap")["metadata"]["labels"]["grafana_dashboard"] == "1"  # Grafana's sidecar selects it
    for kind in ("ServiceMonitor", "PrometheusRule"):  # Prometheus selects by what is given
        assert one(manifests, kind)["metadata"]["labels"]["release"] == "stack"


@pytest.mark.parametrize(
    "base", ["https://git.example/widefield/blob/main", "https://git.example/widefield/blob/main/"]
)
def test_alerts_link_to_the_runbook(base):
    spec = one(render({"monitoring": {"prometheusRule": True, "runbookBase": base}}), "PrometheusRule")["spec"]
    annotations = [rule["annotations"] for group in spec["groups"] for rule in group["rules"]]
    linked = f"{base.rstrip('/')}/docs/operations.md#what-to-alert-on"
    assert len(annotations) > 10
    assert {tuple(sorted(each)) for each in annotations} == {("runbook_url", "summary")}
    assert {each["runbook_url"] for each in annotations} == {linked}


def test_labels_that_prometheus_selects_by_may_be_the_charts_own():
    labels = {"app.kubernetes.io/instance": "prometheus", "release": "stack"}
    manifests = render({"monitoring": {"serviceMonitor": True, "prometheusRule": True, "labels": labels}})
    others = one(render(), "Deployment")["metadata"]["labels"]
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert one(manifests, kind)["metadata"]["labels"] == others | labels


def test_client_certificates_without_a_secret_are_refused():
    with pytest.raises(helm_call.ValuesError, match=r"tls\.secretName is empty: name the secret"):
        render({"tls": {"clientCertificates": True}})


def test_the_notes_name_what_the_chart_made():
    def notes(**values):
        return helm_call.render(CHART, values, "demo")[NOTES]

    assert "gRPC at demo-widefield-grpc.production:8001, HTTP at demo-widefield.production:8000." in notes()
    assert {("Service", "demo-widefield"), ("Service", "demo-widefield-grpc")} <= render().keys()
    others = "Others than these get no answer"
    assert (
        f"{others} (networkPolicy.clients; a podSelector alone is of production):\n\n    - podSelector: {{}}\n"
        in notes()
    )
    assert not re.search("nobody is let in|token|certificate", notes())
    assert others not in notes(networkPolicy={"enabled": False})
    assert "serviceMonitor" not in notes()
    assert "HTTP at demo-widefield.production:80." in notes(service={"http": 80})
    tls = notes(tls={"secretName": "cert"})
    assert "gRPC at grpcs://demo-widefield-grpc.production:8001." in tls
    assert "--url grpcs://localhost:8001 --tls-root CA.crt   #" in tls
    assert "certificate in the secret cert (--tls-root)" in tls
    assert "--tls-certificate" not in tls
    mutual = notes(tls={"secretName": "cert", "clientCertificates": True}, managementToken={"secretName": "mine"})
    assert "signed (--tls-certificate, --tls-key), or get no connection" in mutual
    assert "--tls-root CA.crt --tls-certificate ME.crt --tls-key ME.key   #" in mutual
    assert "interfaces want that of the secret mine, key token:" in mutual
    closed = notes(networkPolicy={"clients": []})
    assert "nobody is let in" in closed
    assert others not in closed
    assert "Autoscaling needs the pods' metrics" in notes(autoscaling={"enabled": True})
