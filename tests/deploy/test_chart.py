"""The Helm chart, rendered by Helm's own engine and held to Kubernetes' schemas."""

import re

import helm_call
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator
from manifests import CHART, DASHBOARD, DEPLOY, RULES, container, one, render

ALL = {
    "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboard": True, "labels": {"release": "stack"}},
    "imagePullSecrets": [{"name": "registry"}],
    "managementToken": {"secretName": "widefield-management"},
    "tls": {"secretName": "widefield-tls", "clientCertificates": True},
    "modelRepository": {"subPath": "2026-11-24"},
    "initContainers": [
        {
            "name": "fetch",
            "image": "rclone/rclone",
            "args": ["copy", "store:models", "/models"],
            "volumeMounts": [{"name": "models", "mountPath": "/models"}, {"name": "keys", "mountPath": "/config"}],
        }
    ],
    "extraVolumes": [{"name": "keys", "secret": {"secretName": "store"}}, {"name": "traces", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "traces", "mountPath": "/traces"}],
    "serviceAccountName": "models-reader",
    "networkPolicy": {"egress": [{"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "UDP", "port": 53}]}]},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "service": {"type": "LoadBalancer", "annotations": {"balancer": "internal"}},
    "podAnnotations": {"note": "x"},
    "podLabels": {"team": "vision", "app.kubernetes.io/name": "another"},
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
    "sharedMemory": "2Gi",
    "extraArgs": ["--log-verbose=1"],
    "extraEnv": [
        {"name": "WIDEFIELD_HOST", "value": "::"},
        {"name": "WIDEFIELD_SHARED_MEMORY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "shared", "key": "token"}}},
    ],
}
CASES = {
    "default": {},
    "gpu": yaml.safe_load((CHART / "values-gpu.yaml").read_text()),
    "everything": ALL,
    "fixed size": {"autoscaling": {"enabled": False}, "replicas": 3},
    "no policy": {"networkPolicy": {"enabled": False}},
    "closed": {"networkPolicy": {"clients": [], "monitoring": []}},
}


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
        {"service": {"http": 8002}},
        {"service": {"type": "ExternalName"}},
        {"fullnameOverride": "Widefield"},
        {"nameOverride": "wide_field"},
        {"topologySpreadConstraints": [{"maxSkew": 1}]},
        {"resources": None},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_wrong_value_is_refused(values):
    with pytest.raises(helm_call.ValuesError):
        render(values)


def test_names_stay_within_their_length():
    manifests = render(ALL, release="r" * 53)
    names = {name for _, name in manifests}
    assert max(map(len, names)) <= 63
    assert len(names) > 2


def test_fewer_pods_at_most_than_at_least_are_refused():
    said = "autoscaling.maxReplicas is 3, less than autoscaling.minReplicas, 5: raise the one or lower the other"
    with pytest.raises(helm_call.ValuesError, match=said):
        render({"autoscaling": {"minReplicas": 5, "maxReplicas": 3}})
    with pytest.raises(helm_call.ValuesError, match=r"maxReplicas is 10, less than autoscaling\.minReplicas, 12"):
        render({"autoscaling": {"minReplicas": 12}})  # than the chart's own
    assert render({"autoscaling": {"enabled": False, "minReplicas": 12}})
    spec = one(render({"autoscaling": {"minReplicas": 3, "maxReplicas": 3}}), "HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 3)


def test_the_grace_period_holds_the_whole_shutdown():
    manifests = render({"shutdown": {"preStopSeconds": 7, "drainSeconds": 50, "spareSeconds": 9}})
    server = container(manifests)
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert {"name": "WIDEFIELD_DRAIN_SECONDS", "value": "50"} in server["env"]
    assert one(manifests, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 66


def test_probes_are_inferences():
    values = {"startupSeconds": 301, "readinessPeriodSeconds": 7, "livenessPeriodSeconds": 13, "timeoutSeconds": 16}
    manifests = render({"probes": values})
    server = container(manifests)
    for name, question in (("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "alive")):
        assert server[name]["exec"]["command"] == ["/opt/widefield/probe.py", question]
        assert server[name]["timeoutSeconds"] == 16
    startup, readiness, liveness = (server[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert startup["periodSeconds"] * startup["failureThreshold"] == 310
    assert (readiness["periodSeconds"], liveness["periodSeconds"]) == (7, 13)
    assert liveness["failureThreshold"] >= 3
    assert one(manifests, "Deployment")["spec"]["progressDeadlineSeconds"] == 601  # a start is no failed roll-out


def test_a_rollout_takes_no_pod_away_before_another_is_ready():
    manifests = render()
    assert one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert one(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("values", [CASES["default"], CASES["gpu"], CASES["everything"]], ids=["cpu", "gpu", "all"])
def test_security_defaults(values):
    manifests = render(values)
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    server = container(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}  # the image's
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in volumes[mounts["/tmp"]["name"]]


def test_gpu():
    server = container(render(CASES["gpu"]))
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "WIDEFIELD_GPU", "value": "true"} in server["env"]
    without = container(render())
    assert "nvidia.com/gpu" not in without["resources"]["limits"]
    assert {"name": "WIDEFIELD_GPU", "value": "false"} in without["env"]


def test_image_reference():
    assert container(render())["image"] == "widefield:0.1.0"
    assert container(render({"image": {"repository": "r/w", "tag": "2"}}))["image"] == "r/w:2"
    digest = "sha256:" + "a" * 64
    assert container(render({"image": {"repository": "r/w", "tag": "2", "digest": digest}}))["image"] == f"r/w@{digest}"


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
        assert {each for _, each in manifests} == {name, f"{name}-grpc"}
        labels = one(manifests, "Deployment")["metadata"]["labels"]
        assert labels == one(render(), "Deployment")["metadata"]["labels"]  # the alerts' job


def test_the_service_is_of_the_kind_that_is_asked_for():
    service, grpc = (render(ALL)["Service", name] for name in ("demo-widefield", "demo-widefield-grpc"))
    assert (service["spec"]["type"], service["metadata"]["annotations"]) == ("LoadBalancer", {"balancer": "internal"})
    assert grpc["spec"]["clusterIP"] == "None"
    assert "annotations" not in grpc["metadata"]
    plain = render()["Service", "demo-widefield"]
    assert plain["spec"]["type"] == "ClusterIP"
    assert "annotations" not in plain["metadata"]


def test_the_pods_are_spread():
    def spread(values):
        return one(render(values), "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]

    assert [each["topologyKey"] for each in spread({})] == ["kubernetes.io/hostname"]
    assert spread(ALL) == ALL["topologySpreadConstraints"]


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
    (endpoint,) = one(manifests, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in scraped["spec"]["ports"]]
    assert scraped["metadata"]["labels"]["app.kubernetes.io/name"] == "widefield"  # becomes the job label


def test_what_is_added_to_the_pod():
    manifests = render(ALL)
    pod, server = one(manifests, "Deployment")["spec"]["template"], container(manifests)
    assert pod["metadata"]["annotations"] == ALL["podAnnotations"]
    without = one(render(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pod["metadata"]["labels"] == without | {"team": "vision"}  # the chart's own stay: they are selected
    assert server["env"][-2:] == ALL["extraEnv"]  # the last of a name counts
    (token,) = [each["valueFrom"] for each in server["env"] if each["name"] == "WIDEFIELD_MANAGEMENT_TOKEN"]
    assert token == {"secretKeyRef": {"name": "widefield-management", "key": "token"}}
    assert server["args"] == ALL["extraArgs"]
    assert pod["spec"]["volumes"][-2:] == ALL["extraVolumes"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["spec"]["volumes"]
    assert server["volumeMounts"][-1:] == ALL["extraVolumeMounts"]
    (models,) = [each for each in server["volumeMounts"] if each["name"] == "models"]
    assert models["subPath"] == "2026-11-24"
    for name in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
        assert pod["spec"][name] == ALL[name]
    assert (pod["spec"]["priorityClassName"], pod["spec"]["runtimeClassName"]) == ("serving", "nvidia")


def test_models_may_be_fetched_when_a_pod_starts():
    values = ALL | {"modelRepository": {"volume": {"emptyDir": {}}}}
    pod = one(render(values), "Deployment")["spec"]["template"]["spec"]
    assert {"name": "models", "emptyDir": {}} in pod["volumes"]
    assert pod["initContainers"] == ALL["initContainers"]
    assert pod["serviceAccountName"] == "models-reader"
    assert one(render(values), "NetworkPolicy")["spec"]["egress"] == ALL["networkPolicy"]["egress"]
    assert "initContainers" not in one(render(), "Deployment")["spec"]["template"]["spec"]


def test_ports_exist():
    manifests = render()
    names = {port["name"] for port in container(manifests)["ports"]}
    used = {
        port["targetPort"] for (kind, _), d in manifests.items() if kind == "Service" for port in d["spec"]["ports"]
    }
    policy = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]
    ingress = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    allowed = {port["port"]: rule["from"] for rule in ingress for port in rule["ports"]}
    assert allowed == {"http": policy["clients"], "grpc": policy["clients"], "metrics": policy["monitoring"]}
    assert used | allowed.keys() == names


def test_autoscaler():
    manifests = render()
    scaler, deployment = one(manifests, "HorizontalPodAutoscaler"), one(manifests, "Deployment")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # an upgrade would undo the autoscaler's work
    adapter = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter-values.yaml").read_text())
    known = [rule["name"]["as"] for rule in adapter["rules"]["custom"]]
    for metric, model in zip(scaler["spec"]["metrics"], ("preprocess", "backbone"), strict=True):
        assert metric["pods"]["metric"]["selector"] == {"matchLabels": {"model": model}}
        assert metric["pods"]["metric"]["name"] in known
        assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "8"}
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


def test_client_certificates_without_a_secret_are_refused():
    with pytest.raises(helm_call.ValuesError, match=r"tls\.secretName is empty: name the secret"):
        render({"tls": {"clientCertificates": True}})


def test_the_models_lie_in_one_volume_of_any_kind():
    sources = [
        ({}, {"persistentVolumeClaim": {"claimName": "widefield-models", "readOnly": True}}),
        ({"volume": {}}, {"persistentVolumeClaim": {"claimName": "widefield-models", "readOnly": True}}),
        *(
            ({"volume": source}, source)
            for source in (
                {"nfs": {"server": "192.0.2.1", "path": "/models", "readOnly": True}},
                {"persistentVolumeClaim": {"claimName": "mine", "readOnly": True}},
            )
        ),
    ]
    for repository, source in sources:
        volumes = one(render({"modelRepository": repository}), "Deployment")["spec"]["template"]["spec"]["volumes"]
        assert [each for each in volumes if each["name"] == "models"] == [{"name": "models", **source}]
    both = {"nfs": {"server": "192.0.2.1", "path": "/"}, "persistentVolumeClaim": {"claimName": "mine"}}
    with pytest.raises(helm_call.ValuesError):
        helm_call.validate(CHART, {"modelRepository": {"volume": both}})


@pytest.mark.parametrize("values", [{"service": {"http": None}}, {"tls": {"secretName": "mine"}}])
def test_grpc_alone(values):
    """Others hear no HTTP: no service, no rule, and it listens for the probes inside the pod."""
    for exposed, manifests in ((True, render()), (False, render(values))):
        (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        host = {each["name"]: each.get("value") for each in container["env"]}.get("WIDEFIELD_HTTP_HOST")
        assert host == (None if exposed else "127.0.0.1")
        services = {
            port["name"] for (kind, _), each in manifests.items() if kind == "Service" for port in each["spec"]["ports"]
        }
        assert services == {"grpc", "metrics"} | ({"http"} if exposed else set())
        rules = one(manifests, "NetworkPolicy")["spec"]["ingress"]
        ports = {port["port"] for rule in rules for port in rule["ports"]}
        assert ports == services


def test_tls():
    """Off unless a secret is named; with one, the entry point is told of its files."""
    off = str(render().values())
    assert "WIDEFIELD_TLS" not in off
    for clients in (False, True):
        manifests = render({"tls": {"secretName": "mine", "clientCertificates": clients}})
        spec = one(manifests, "Deployment")["spec"]["template"]["spec"]
        values = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
        assert (values["WIDEFIELD_TLS_CERT"], values["WIDEFIELD_TLS_KEY"]) == ("/tls/tls.crt", "/tls/tls.key")
        assert values.get("WIDEFIELD_TLS_CLIENT_CA") == ("/tls/ca.crt" if clients else None)
        (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "tls"]
        assert mount == {"name": "tls", "mountPath": "/tls", "readOnly": True}
        (volume,) = [each for each in spec["volumes"] if each["name"] == "tls"]
        assert volume["secret"] == {"secretName": "mine", "defaultMode": 0o440}
