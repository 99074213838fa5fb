"""What the server needs and refuses at its start, and the messages."""

import shutil
from pathlib import Path

import pytest
from server_processes import backends_of

from server import OptionError, PortInUseError, ServerError, StartError, TritonServer
from server.backends import build as backends
from server.repository import replaced

pytestmark = pytest.mark.server


@pytest.mark.parametrize("address", ["http_url", "grpc_url", "metrics_url"])
def test_before_the_start_there_is_no_address(tmp_path, address):
    with pytest.raises(ServerError, match="not started: use it in a with statement"):
        getattr(TritonServer(tmp_path), address)


@pytest.mark.parametrize(
    "option", ["drain_seconds", "max_restarts", "start_timeout", "probe_interval", "probe_timeout"]
)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_no_number_is_negative_or_without_end(option, value):
    with pytest.raises(OptionError, match=f"--{option.replace('_', '-')} is {value:g}: give"):
        TritonServer("models", **{option: value})


def test_start_timeout(repository):
    with pytest.raises(StartError, match=r"not ready after 0\.2 s"):
        TritonServer(repository, start_timeout=0.2).start()


def test_busy_port(server, repository):
    port = int(server.http_url.rsplit(":", 1)[1])
    with pytest.raises(PortInUseError, match=rf"port {port} is in use by tritonserver \(pid \d+\).*--http-port"):
        TritonServer(repository, http_port=port).start()


def test_a_repository_whose_path_bash_would_split(light_repository, tmp_path, sleep):
    folder = tmp_path / "my models; echo $HOME"
    folder.symlink_to(light_repository)
    with TritonServer(folder) as server:
        assert sleep(server.grpc_url, 0.5) == 0.5


def test_a_model_that_fails_to_load_is_named(repository, tmp_path):
    root = tmp_path / "repository"
    shutil.copytree(repository, root)
    for file in ("config.pbtxt", "configs/embedded.pbtxt"):
        config = root / "backbone" / file
        right = config.read_text()
        config.write_text(right.replace('value { string_value: "1" }', 'value { string_value: "many" }', 1))
        assert config.read_text() != right
    with pytest.raises(StartError) as caught:
        TritonServer(root).start()
    assert "'backbone': parameter INTRA_OP_THREAD_COUNT is \"many\": write" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_option_that_tritonserver_does_not_know(repository):
    with pytest.raises(StartError, match="unrecognized option '--sing'"):
        TritonServer(repository, tritonserver_args=["--sing"]).start()


def test_an_edit_without_effect_is_told(light_repository, tmp_path):
    root, events = tmp_path / "repository", []
    shutil.copytree(light_repository, root)
    model = next(folder for folder in root.iterdir() if (folder / "config.pbtxt").is_file())
    text = (model / "config.pbtxt").read_bytes()
    embedded = text.replace(b'"python"', b'"python_in_process"')
    (model / "configs" / "embedded.pbtxt").write_bytes(replaced(text).encode() + embedded)
    (model / "config.pbtxt").write_bytes(text + b"\n")
    with TritonServer(root, on_event=events.append):
        assert [line.split(",")[0] for line in events] == [f"warning: {model.name}/config.pbtxt was changed"]


@pytest.mark.parametrize(
    ("cores", "told"),
    [
        (1, ["a model computes with 4 threads, but this server may use 1 core"]),
        (4, []),
        (8, []),
        (9, ["the models compute on no more than 4 of the 9 cores that this server may use"]),
    ],
)
def test_more_threads_than_cores_or_far_fewer_are_told(light_repository, tmp_path, monkeypatch, cores, told):
    """The cores are those of a container's quota."""
    root, events = shutil.copytree(light_repository, tmp_path / "repository"), []
    threads = 'parameters {\n  key: "%s"\n  value {\n    string_value: "%d"\n  }\n}\n'
    with (root / "sleepy" / "configs" / "embedded.pbtxt").open("a") as config:
        config.write(threads % ("INTRA_OP_THREAD_COUNT", 2) + threads % ("LONE_THREAD_COUNT", 4))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{cores * 100_000}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr("server.cores.CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    with TritonServer(root, on_event=events.append):
        remedy = f"build with --threads {cores}, or run python -m server.tune"
        assert events == [f"warning: {line}: {remedy}" for line in told]


@pytest.mark.parametrize("built", [True, False])
def test_the_preprocess_step_has_its_library(repository_of_processes, monkeypatch, built):
    """Without the library the server says so and still answers."""
    current = backends.is_current
    monkeypatch.setattr(
        backends, "is_current", lambda library: current(library) if library is not backends.RESIZE else built
    )
    events = []
    with TritonServer(repository_of_processes, on_event=events.append) as server:
        maps = [Path(f"/proc/{stub.pid}/maps").read_text() for stub in backends_of(server)]
    assert len(maps) == 2
    assert ["libwidefield_resize.so" in text for text in maps] == [built, built]
    assert [event.partition(": run")[0] for event in events] == (
        [] if built else ["warning: images are resized slowly"]
    )
