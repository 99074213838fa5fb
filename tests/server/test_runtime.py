"""The private folder, the environment and the command line, without starting anything."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import InstallationError
from server.__main__ import main, parse_arguments
from server.backends import build as backends
from server.endpoints import Endpoints
from server.locate import Installation, find_tritonserver
from server.repository import Repository
from server.runtime import Runtime, has_gpu, is_shell_safe
from server.tritonserver_options import listen_address


def endpoints(host, metrics_host="127.0.0.1"):
    hosts = {"http": host, "grpc": host, "metrics": metrics_host}
    return Endpoints(hosts, {"http": 1, "grpc": 2, "metrics": 3})


ENDPOINTS = endpoints("127.0.0.1")


@pytest.fixture
def runtime(tmp_path):
    made = Runtime(find_tritonserver(), Repository(tmp_path, ("backbone",), None, {"backbone": "pytorch"}))
    yield made
    made.remove()
    assert not made.folder.exists()


@pytest.fixture
def native(tmp_path):
    """An installation like the container's: no stubs of its own, a native LibTorch backend."""
    root = tmp_path / "opt"
    (root / "bin").mkdir(parents=True)
    (root / "backends" / "pytorch").mkdir(parents=True)
    (root / "backends" / "pytorch" / "libtriton_pytorch.so").touch()
    (root / "bin" / "tritonserver").touch(0o755)
    return Installation(root / "bin" / "tritonserver")


def test_backends(runtime):
    backends = runtime.folder / "backends"
    library = backends / "pytorch" / "libtriton_pytorch.so"
    assert library.resolve().is_relative_to(runtime.folder)  # tritonserver refuses one that lies elsewhere
    assert is_shell_safe(str(runtime.folder))


@pytest.mark.usefixtures("python_backend")
def test_the_python_backend(runtime):
    folder = runtime.folder / "backends" / "python"
    assert (folder / "libtriton_python.so").resolve().is_relative_to(runtime.folder)
    assert (folder / "triton_python_backend_stub").is_symlink()


def test_no_python_backend_for_this_python(monkeypatch, tmp_path):
    """Only a model that runs in a process of its own needs it."""
    monkeypatch.setattr("server.runtime.PYTHON_VERSION", "3.77")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4")
    runtime = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {"preprocess": "python_in_process"}))
    assert not (runtime.folder / "backends" / "python").exists()
    runtime.remove()
    with pytest.raises(InstallationError, match=r"^model own needs the Python backend, .* not have for Python 3\.77"):
        Runtime(find_tritonserver(), Repository(tmp_path, (), None, {"own": "python"}))


def test_environment(runtime, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    environment = runtime.environment()
    assert environment["PATH"].startswith(f"{Path(sys.executable).parent}:")
    assert environment["LD_LIBRARY_PATH"] == f"{runtime.folder / 'lib'}:/mine"
    assert environment["LD_PRELOAD"] == str(runtime.folder / "libwidefield_fixes.so")
    assert Path(environment["LD_PRELOAD"]).samefile(backends.FIXES.output)


def test_nothing_is_preloaded_where_nothing_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "is_current", lambda library: library is not backends.FIXES)
    runtime = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    try:
        assert not {"LD_PRELOAD", "BASH_ENV"} & runtime.environment().keys()
    finally:
        runtime.remove()


def test_the_fixes_can_be_turned_off(tmp_path, monkeypatch):
    monkeypatch.setenv("WIDEFIELD_FIXES", "")
    runtime = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    try:
        assert not {"LD_PRELOAD", "BASH_ENV"} & runtime.environment().keys()
        assert not any("a release may end the server" in line for line in runtime.warnings())
    finally:
        runtime.remove()


def test_allocator_settings_give_way_to_the_users(runtime, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    environment = runtime.environment()
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert "MALLOC_TRIM_THRESHOLD_" not in environment


def test_command(runtime):
    command = runtime.command(ENDPOINTS, 7, extra=["--log-verbose=1"])
    for option in (
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--model-control-mode=none",
        "--exit-timeout-secs=7",
        "--grpc-keepalive-time=60000",
        "--grpc-max-connection-age=120000",
        f"--backend-config=python,shm-region-prefix-name={runtime.folder.name}-",
        f"--backend-directory={runtime.folder / 'backends'}",
        "--model-config-name=embedded",
        "--log-format=ISO8601",
    ):
        assert option in command
    assert command[-1] == "--log-verbose=1"


def test_the_tokens_are_random_unless_named(runtime):
    def restricted(*tokens):
        command = runtime.command(ENDPOINTS, 7, *tokens)
        options = [each.partition("=")[2] for each in command if each.startswith("--http-restricted-api=")]
        assert options == [each.partition("=")[2] for each in command if each.startswith("--grpc-restricted-protocol=")]
        return options

    assert not set(restricted()) & set(restricted())
    assert restricted(("open", "shown")) == [
        "model-config,model-repository,trace,logging:widefield-management=open",
        "shared-memory:widefield-shared-memory=shown",
    ]


def test_gpu_options(runtime, monkeypatch):
    monkeypatch.setattr("server.runtime.has_gpu", lambda: False)
    assert "--pinned-memory-pool-byte-size=0" in runtime.command(ENDPOINTS, 7)
    monkeypatch.setattr("server.runtime.has_gpu", lambda: True)
    assert "--allow-gpu-metrics=false" not in runtime.command(ENDPOINTS, 7)
    assert has_gpu() == (Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists())


def test_the_container_preloads_for_tritonserver_alone(native, tmp_path, monkeypatch):
    """Beside what its user preloads, such as an allocator; no path of LD_PRELOAD may have a space."""
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc.so.4")
    library = tmp_path / "a folder" / "lib widefield:2.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF")
    runtime = Runtime(native, Repository(tmp_path, ("backbone",), "backbone", {"backbone": "pytorch"}), library)
    try:
        environment = runtime.environment()
        assert environment["LD_PRELOAD"] == f"{runtime.fixes}:{runtime.operators}:libtcmalloc.so.4"
        assert runtime.operators.samefile(library)
        assert environment["LD_LIBRARY_PATH"].startswith(str(native.backends / "pytorch"))
        own = ("--backend-directory", "--model-config-name")
        assert not any(each.startswith(own) for each in runtime.command(ENDPOINTS, 7))
        seen = subprocess.run(  # as the Python backend starts a stub
            ["bash", "-c", "exec env"],
            env={**os.environ, "BASH_ENV": environment["BASH_ENV"], "LD_PRELOAD": "", "WIDEFIELD_LIBRARY": "kept"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "LD_PRELOAD" not in seen
        assert "BASH_ENV" not in seen
        assert "WIDEFIELD_LIBRARY=kept" in seen
    finally:
        runtime.remove()


def test_libpython_missing(monkeypatch, tmp_path):
    """Neither this Python nor the system has one."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr("server.runtime.LIBPYTHON", "libpython3.77.so.1.0")
    with pytest.raises(
        InstallationError, match=r"^libpython3\.77\.so\.1\.0 is missing.*apt-get install libpython3\.77 "
    ):
        Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))


def test_numpy_2_stops_the_start_and_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0")
    with pytest.raises(InstallationError, match=r"numpy 2\.1\.0 .* model preprocess:"):
        Runtime(find_tritonserver(), Repository(tmp_path, (), None, {"preprocess": "python"}))
    assert list(tmp_path.iterdir()) == []


def test_numpy_2_is_no_matter_in_the_servers_own_process(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0")
    Runtime(find_tritonserver(), Repository(tmp_path, (), None, {"preprocess": "python_in_process"})).remove()


def test_a_temporary_folder_from_which_nothing_may_be_loaded(monkeypatch, tmp_path):
    real = os.statvfs
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=real(path).f_flag | os.ST_NOEXEC))
    with pytest.raises(InstallationError, match=rf"^{tmp_path} is mounted noexec, .*: name another folder in TMPDIR$"):
        Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_bash_would_split(monkeypatch, tmp_path):
    unsafe = tmp_path / "a b"
    unsafe.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unsafe))
    runtime = Runtime(find_tritonserver(), Repository(tmp_path, (), None, {}))
    runtime.remove()
    assert is_shell_safe(str(runtime.folder))


def test_no_pytorch(monkeypatch, tmp_path):
    def missing(library):
        if library is backends.PYTORCH:
            raise backends.BuildError("PyTorch is not installed: pip install torch")
        return False

    monkeypatch.setattr(backends, "is_current", missing)
    with pytest.raises(InstallationError, match=r"^model softmax needs the pytorch backend: PyTorch is not installed"):
        Runtime(find_tritonserver(), Repository(tmp_path, ("softmax",), None, {"softmax": "pytorch"}))
    Runtime(find_tritonserver(), Repository(tmp_path, ("own",), None, {"own": "identity"})).remove()


def test_a_backend_that_is_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "is_current", lambda library: False)
    with pytest.raises(
        InstallationError, match=r"model softmax needs the pytorch backend, not built .*: run .*build\.py"
    ):
        Runtime(find_tritonserver(), Repository(tmp_path, ("softmax",), None, {"softmax": "pytorch"}))


@pytest.mark.parametrize("path", ["/a b", "/a;b", "/$a", "/a'b", "/a`b`", "/a\nb", "/é"])
def test_shell_unsafe(path):
    assert not is_shell_safe(path)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1:1"), ("0.0.0.0", "127.0.0.1:1"), ("::", "[::1]:1"), ("::1", "[::1]:1")],
)
def test_addresses_are_ones_to_connect_to(host, expected):
    assert endpoints(host).address("http") == expected
    assert endpoints(host).address("metrics") == "127.0.0.1:3"


def test_addresses_as_tritonserver_wants_them():
    def listen(chosen):
        return [listen_address(service, chosen.hosts[service]) for service in ("http", "grpc", "metrics")]

    assert listen(endpoints("0.0.0.0")) == ["0.0.0.0", "0.0.0.0", "127.0.0.1"]
    assert listen(endpoints("::1", "::")) == ["ipv6:::1", "[::1]", "ipv6:::"]


def test_arguments():
    options = parse_arguments(["--http-port", "1", "--", "--log-verbose=1"])
    assert (options.host, options.http_port, options.tritonserver_args) == ("127.0.0.1", 1, ["--log-verbose=1"])


def test_command_line_says_one_line(tmp_path, capsys):
    assert main(["--model-repository", str(tmp_path / "none")]) == 1
    errors = capsys.readouterr().err
    assert errors == f"server: error: model repository {tmp_path / 'none'} does not exist: run build_models.py\n"


def test_command_line_says_one_line_of_the_log_and_of_a_backend(tmp_path, capsys, monkeypatch):
    embedded = Installation(tmp_path / "wheel" / "bin" / "tritonserver")
    (embedded.root / "python_backend_stubs").mkdir(parents=True)
    monkeypatch.setattr("server.launch.find_tritonserver", lambda: embedded)
    config = tmp_path / "models" / "backbone" / "config.pbtxt"
    (config.parent / "1").mkdir(parents=True)
    config.touch()
    (config.parent / "1" / "build.json").write_text('{"files_sha256": {}}')
    arguments = ["--model-repository", str(tmp_path / "models"), "--http-port", "0", "--grpc-port", "0"]
    arguments += ["--metrics-port", "0", "--log-file", str(config / "log")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"server: error: log file {config / 'log'} cannot be written (")

    config.write_text('backend: "onnxruntime"\n')
    (config.parent / "1" / "model.onnx").touch()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("server: error: model backbone needs the onnxruntime backend, which the embedded")


def test_command_line_warns_of_another_host(tmp_path, capsys):
    assert main(["--model-repository", str(tmp_path / "none"), "--host", "0.0.0.0"]) == 1
    assert "warning: 0.0.0.0 is reachable from other machines" in capsys.readouterr().err


def test_the_supervisor_imports_no_torch():
    code = "import server, sys; print(sorted({'torch', 'tritonclient', 'PIL', 'kernels', 'models'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
