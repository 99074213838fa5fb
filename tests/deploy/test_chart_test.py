"""The pod of `helm test`."""

import subprocess
import sys

import pytest
from chart_values import ALL
from manifests import IMAGE, ROOT, container, one, render


def test_it_asks_the_service_as_a_pod_s_own_probe_does():
    manifests = render({"service": {"http": 80}, "tolerations": [{"key": "gpu", "operator": "Exists"}]})
    pod = one(manifests, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (asking,) = pod["spec"]["containers"]
    assert asking["image"] == container(manifests)["image"]
    assert asking["command"] == container(manifests)["readinessProbe"]["exec"]["command"]
    assert pod["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]  # the nodes that have the image
    environment = {variable["name"]: variable["value"] for variable in asking["env"]}
    code = f"import sys; sys.path[:0] = [{str(IMAGE)!r}, {str(ROOT / 'server')!r}]\nimport probe\n"
    code += f"print(probe.http_address({environment}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "demo-widefield:80\n", done.stderr
    assert ("Service", "demo-widefield") in manifests


def test_it_is_sent_no_requests_and_may_do_little():
    manifests = render()
    pod = one(manifests, "Pod")
    labels = pod["metadata"]["labels"].items()
    services = [document for (kind, _), document in manifests.items() if kind == "Service"]
    assert not [service for service in services if service["spec"]["selector"].items() <= labels]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["containers"][0]["securityContext"] == container(manifests)["securityContext"]


@pytest.mark.parametrize("values", [ALL, {"service": {"http": None}}], ids=["TLS", "gRPC only"])
def test_without_http_there_is_none(values):
    assert not [kind for kind, _ in render(values) if kind == "Pod"]
