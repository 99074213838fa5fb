"""What clusters differ in: their security standard, their room, how the models come, what stands before the pods."""

import re

import pytest
import yaml
from chart_values import ALL, CASES
from manifests import DEPLOY, container, one, render

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def pod(values):
    return one(render(values), "Deployment")["spec"]["template"]["spec"]


def violations(spec):
    """Yield what the restricted Pod Security Standard refuses of a pod; the fields that the chart has no value for."""
    own = spec["securityContext"]
    yield from {key for volume in spec["volumes"] for key in volume} - VOLUMES - {"name"}
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for each in [*spec["containers"], *spec.get("initContainers", [])]:
        context = own | each.get("securityContext", {})
        wanted = {
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser") != 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "privileged": not context.get("privileged"),
            "hostPort": not any("hostPort" in port for port in each.get("ports", [])),
        }
        yield from (f"{each['name']}: {key}" for key, kept in wanted.items() if not kept)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_restricted_standard_admits_the_pods(values):
    assert list(violations(pod(values))) == []


def test_a_violation_is_found():
    values = {"podSecurityContext": {"runAsNonRoot": False}, "extraVolumes": [{"name": "a", "hostPath": {"path": "/"}}]}
    assert list(violations(pod(values))) == ["hostPath", "tritonserver: runAsNonRoot"]
    root = [{"name": "fetch", "image": "x", "securityContext": {"runAsUser": 0}}]
    assert list(violations(pod({"initContainers": root}))) == ["fetch: runAsUser"]


def test_a_cluster_may_choose_the_user():
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod(CASES["OpenShift"])["securityContext"].keys()


@pytest.mark.parametrize(("values", "over"), [({}, "kubernetes.io/hostname"), (ALL, "topology.kubernetes.io/zone")])
def test_the_pods_of_one_version_are_spread(values, over):
    """A constraint without labelSelector would count no pod at all."""
    (constraint,) = pod(values)["topologySpreadConstraints"]
    assert constraint["topologyKey"] == over
    selected = one(render(values), "Deployment")["spec"]["selector"]
    assert (constraint["labelSelector"], constraint["matchLabelKeys"]) == (selected, ["pod-template-hash"])


def test_a_selector_that_is_given_stays():
    own = ALL["topologySpreadConstraints"][0] | {"labelSelector": {"matchLabels": {"team": "vision"}}}
    assert pod({"topologySpreadConstraints": [own]})["topologySpreadConstraints"] == [own]


def test_without_room_for_one_more_pod_one_goes_first():
    strategy = one(render(CASES["no spare node"]), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0}}


def test_an_upgrade_leaves_the_number_of_pods_to_another_autoscaler():
    manifests = render(CASES["another autoscaler"])
    assert "replicas" not in one(manifests, "Deployment")["spec"]
    assert "HorizontalPodAutoscaler" not in [kind for kind, _ in manifests]


def test_models_in_the_image_are_not_covered_by_a_volume():
    spec = pod(CASES["models in the image"])
    assert "models" not in [volume["name"] for volume in spec["volumes"]]
    assert "/models" not in [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]]


def test_why_a_container_ended_is_in_its_pods_description():
    assert container(render())["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_documented_route_leads_to_the_service():
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    (example,) = re.findall(r"(?m)^ {4}extraManifests:\n(?: {4,}.*\n)+", page)
    manifests = render(yaml.safe_load(example))
    route, service = one(manifests, "GRPCRoute"), manifests["Service", "demo-widefield"]
    assert route["metadata"]["name"] == "demo-widefield"
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"] in [port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc"]
    clients = one(manifests, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}} in clients
