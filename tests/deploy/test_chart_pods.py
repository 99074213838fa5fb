"""The pods that the Helm chart asks for."""

import helm_call
import pytest
import yaml
from chart_values import ALL, CASES
from manifests import CHART, container, one, render


@pytest.mark.parametrize("values", [CASES["default"], CASES["gpu"], CASES["everything"]], ids=["cpu", "gpu", "all"])
def test_security_defaults(values):
    manifests = render(values)
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    server = container(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}  # the image's
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # a service named widefield-http would set WIDEFIELD_HTTP_PORT
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


def test_the_grace_period_holds_the_whole_shutdown():
    manifests = render({"shutdown": {"preStopSeconds": 7, "drainSeconds": 50, "spareSeconds": 9}})
    server = container(manifests)
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert {"name": "WIDEFIELD_DRAIN_SECONDS", "value": "50"} in server["env"]
    assert one(manifests, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 66


def test_a_rollout_takes_no_pod_away_before_another_is_ready():
    manifests = render()
    assert one(manifests, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    budget = one(manifests, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"  # a broken pod holds up no node


def test_gpu():
    server = container(render(CASES["gpu"]))
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "WIDEFIELD_GPU", "value": "true"} in server["env"]
    without = container(render())
    assert "nvidia.com/gpu" not in without["resources"]["limits"]
    assert {"name": "WIDEFIELD_GPU", "value": "false"} in without["env"]
    added = container(render({"gpu": {"count": 2}}))["resources"]["limits"]
    assert added == without["resources"]["limits"] | {"nvidia.com/gpu": 2}


@pytest.mark.parametrize("count", [0, 1])
def test_gpus_are_counted_in_one_place(count):
    """Else a pod could get GPUs that serve.py is told not to use, or another number than was asked for."""
    limits = {"limits": {"nvidia.com/gpu": 2}}
    said = rf"resources\.limits has nvidia\.com/gpu: 2, but gpu\.count is {count}: set gpu\.count instead"
    with pytest.raises(helm_call.ValuesError, match=said):
        render({"gpu": {"count": count}, "resources": limits})
    assert container(render({"gpu": {"count": 2}, "resources": limits}))["resources"]["limits"]["nvidia.com/gpu"] == 2


def test_image_reference():
    assert container(render())["image"] == "widefield:0.1.0"
    assert container(render({"image": {"pullPolicy": "Always"}}))["imagePullPolicy"] == "Always"
    assert container(render({"image": {"repository": "r/w", "tag": "2"}}))["image"] == "r/w:2"
    digest = "sha256:" + "a" * 64
    assert container(render({"image": {"repository": "r/w", "tag": "2", "digest": digest}}))["image"] == f"r/w@{digest}"


def test_ports_exist():
    manifests = render({"service": {"http": 80, "metrics": 90}})
    names = {port["name"] for port in container(manifests)["ports"]}
    ports = [port for (kind, _), d in manifests.items() if kind == "Service" for port in d["spec"]["ports"]]
    used = {port["name"]: (port["port"], port["targetPort"]) for port in ports}
    assert used == {"http": (80, "http"), "metrics": (90, "metrics"), "grpc": (8001, "grpc")}
    policy = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]
    ingress = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    allowed = {port["port"]: rule["from"] for rule in ingress for port in rule["ports"]}
    assert allowed == {"http": policy["clients"], "grpc": policy["clients"], "metrics": policy["monitoring"]}
    assert used.keys() == allowed.keys() == names


def test_a_variable_of_the_chart_is_replaced():
    """Kubernetes refuses a name that stands twice."""
    given = [{"name": "WIDEFIELD_GPU", "value": "true"}]
    names = [each["name"] for each in container(render({"extraEnv": given}))["env"]]
    assert sorted(names) == sorted(each["name"] for each in container(render())["env"])
    assert container(render({"extraEnv": given}))["env"][-1] == given[0]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"extraEnv": [{"name": "WIDEFIELD_GRPC_PORT", "value": "9"}]}, "extraEnv has WIDEFIELD_GRPC_PORT, but"),
        ({"extraArgs": ["--log-verbose=1", "--http-port=9"]}, "extraArgs has --http-port=9, but"),
    ],
)
def test_another_port_would_be_reached_by_nobody(values, named):
    with pytest.raises(helm_call.ValuesError, match=rf"{named} the services and policies lead to 8000, 8001 and 8002"):
        render(values)


@pytest.mark.parametrize(
    "values",
    [
        {"extraEnv": [{"name": "WIDEFIELD_DRAIN_SECONDS", "value": "300"}]},
        {"extraArgs": ["--exit-timeout-secs=90"]},
    ],
)
def test_another_drain_would_outlast_the_grace_period(values):
    with pytest.raises(helm_call.ValuesError, match=r"which the grace period has to fit: set shutdown\.drainSeconds"):
        render(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELS", "modelRepository"),
        ("HTTP_HOST", r"service\.http"),
        ("MANAGEMENT_TOKEN", "managementToken"),
        ("TLS_CERT", "tls"),
        ("TLS_KEY", "tls"),
        ("TLS_CLIENT_CA", "tls"),
    ],
)
def test_what_has_a_value_of_its_own_is_no_extra_variable(name, value):
    """The pod would serve other files than are mounted, or what its services and policies do not say."""
    given = [{"name": "WIDEFIELD_HOST", "value": "::"}, {"name": f"WIDEFIELD_{name}", "value": "x"}]
    with pytest.raises(helm_call.ValuesError, match=rf"extraEnv has WIDEFIELD_{name}, .*: set {value} "):
        render({"extraEnv": given})


def test_requests_are_the_limits_unless_given():
    """Kubernetes takes the limits; defaults of both would refuse lower limits."""
    assert container(render({"resources": {"limits": {"cpu": "2"}}}))["resources"] == {
        "limits": {"cpu": "2", "memory": "6Gi"},
        "requests": {},
    }


def test_what_is_added_to_the_pod():
    manifests = render(ALL)
    pod, server = one(manifests, "Deployment")["spec"]["template"], container(manifests)
    assert pod["metadata"]["annotations"] == ALL["podAnnotations"]
    assert one(manifests, "Deployment")["metadata"]["annotations"] == ALL["deploymentAnnotations"]
    without = one(render(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pod["metadata"]["labels"] == without | {"team": "vision"}  # the chart's own stay: they are selected
    assert server["env"][-2:] == ALL["extraEnv"]
    (token,) = [each["valueFrom"] for each in server["env"] if each["name"] == "WIDEFIELD_MANAGEMENT_TOKEN"]
    assert token == {"secretKeyRef": {"name": "widefield-management", "key": "secret"}}
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
    (fetch,) = pod["initContainers"]
    assert fetch.items() >= ALL["initContainers"][0].items()
    assert pod["serviceAccountName"] == "models-reader"
    assert one(render(values), "NetworkPolicy")["spec"]["egress"] == ALL["networkPolicy"]["egress"]
    assert "initContainers" not in one(render(), "Deployment")["spec"]["template"]["spec"]


def test_the_models_lie_in_one_volume_of_any_kind():
    sources = [
        ({}, {"persistentVolumeClaim": {"claimName": "widefield-models", "readOnly": True}}),
        ({"volume": {}}, {"persistentVolumeClaim": {"claimName": "widefield-models", "readOnly": True}}),
        *(
            ({"volume": source}, source)
            for source in (
                {"nfs": {"server": "192.0.2.1", "path": "/models", "readOnly": True}},
                {"persistentVolumeClaim": {"claimName": "mine", "readOnly": True}},
                {"image": {"reference": "registry/models:2026-12-01"}},
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
