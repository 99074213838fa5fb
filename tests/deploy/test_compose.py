"""compose: of the specification's form, every mounted file there, nothing open to other machines."""

import json
import re

import compose_spec
import pytest
import yaml
from manifests import DASHBOARD, DEPLOY, IMAGE

import page

FILES = ["compose.yaml", "compose.gpu.yaml"]


def services():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize("name", FILES)
def test_of_the_specification(name):
    document = yaml.safe_load((DEPLOY / name).read_text())
    document.pop("x-hardened", None)
    if name == "compose.gpu.yaml":  # an overlay: the image is named in the file below it
        document["services"]["server"]["image"] = "widefield"
    compose = compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))
    compose.validate()
    assert set(compose.service_names()) == set(document["services"])


def test_a_misspelt_field_is_found():
    document = {"services": {"server": {"image": "x", "prots": ["1:1"]}}}
    with pytest.raises(Exception, match="prots"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))


def test_what_is_mounted_exists():
    for service in services().values():
        for volume in service.get("volumes", ()):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert rest.endswith(":ro"), volume
    for name in ("server", "page"):
        build = services()[name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_hardened_and_on_loopback():
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port
    password = services()["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert password.startswith("${GRAFANA_PASSWORD:?")  # nobody starts it with one that all know


def test_the_image_knows_every_variable():
    text = "".join((IMAGE / name).read_text() for name in ("serve.py", "check_settings.py"))
    for name in services()["server"]["environment"]:
        assert re.search(rf"\b{name}\b", text), name


def test_the_page_is_started_only_when_its_profile_is_asked_for():
    assert {name: service["profiles"] for name, service in services().items() if "profiles" in service} == {
        "page": ["page"]
    }
    for name, service in services().items():
        assert name == "page" or "page" not in service.get("depends_on", ())
    for document in ("operations.md", "page.md"):
        assert "--profile page" in (DEPLOY.parent / "docs" / document).read_text()


def test_the_page_asks_the_server():
    service = services()["page"]
    options = page.options_of([*entry_point(DEPLOY / "page.Dockerfile"), *service["command"]])
    assert [url.partition("://")[2] for url in options.classifier.urls] == ["server:8001"]
    assert options.host == "0.0.0.0"
    assert service["ports"] == [f"127.0.0.1:{options.port}:{options.port}"]
    assert f"EXPOSE {options.port}\n" in (DEPLOY / "page.Dockerfile").read_text()
    assert service["depends_on"] == ["server"]


def entry_point(dockerfile):
    """The arguments after ``python -m page``."""
    (line,) = [line for line in dockerfile.read_text().splitlines() if line.startswith("ENTRYPOINT")]
    program = json.loads(line.removeprefix("ENTRYPOINT"))
    assert program[:3] == ["python", "-m", "page"]
    return program[3:]


def test_images_are_pinned():
    for service in services().values():
        tag = service["image"].rpartition(":")[2]
        assert tag[0].isdigit() or tag[0] == "v"


def test_the_grace_period_holds_the_drain():
    server = services()["server"]
    assert int(server["stop_grace_period"].rstrip("s")) >= int(server["environment"]["WIDEFIELD_DRAIN_SECONDS"]) + 15


def test_memory_has_a_limit_and_no_swap():
    """With swap the server slows the machine down instead of ending."""
    server = services()["server"]
    assert server["mem_limit"] == server["memswap_limit"]


def test_grafana_finds_its_data_source_and_dashboard():
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (variable,) = [v for v in json.loads(DASHBOARD.read_text())["templating"]["list"] if v["type"] == "datasource"]
    assert variable["current"]["value"] == source["uid"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "widefield.yml").read_text())["providers"]
    assert f"{provider['options']['path']}/widefield.json" in str(services()["grafana"]["volumes"])


def test_prometheus_scrapes_the_server_and_reads_the_rules():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "widefield"
    assert int(config["global"]["scrape_interval"].removesuffix("s")) <= 60  # the alerts have rates of five minutes
    assert job["static_configs"] == [{"targets": ["server:8002"]}]
    (rules,) = config["rule_files"]
    assert f"/etc/prometheus/{rules}:ro" in str(services()["prometheus"]["volumes"])
