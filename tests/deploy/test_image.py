"""The image's parts that run without a container: the Dockerfile's lint and the entry point."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import Authority
from manifests import DEPLOY, ROOT, lay_out

from server.tls import Tls
from server.tritonserver_options import ENVIRONMENT, MANAGEMENT_HEADER, SPIN, common_options, listen_address

SPY = """#!{python} -S
import os, subprocess, sys
variables = [f"{{name}}={{value}}" for name, value in os.environ.items()]
for name, lines in (("arguments", sys.argv[1:]), ("environment", variables)):
    with open("{out}/" + name, "w") as file:
        print(*lines, sep="\\n", file=file)
subprocess.run(["bash", "-c", "env > {out}/stub"])  # as tritonserver starts its Python processes
"""


def tools(name):
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize("name", ["Dockerfile", "page.Dockerfile"])
def test_hadolint(name):
    done = subprocess.run([tools("hadolint"), DEPLOY / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "count"), [("Dockerfile", 14), ("page.Dockerfile", 3)])
def test_what_the_dockerfile_copies_exists(name, count):
    ignored = (DEPLOY / f"{name}.dockerignore").read_text().split()
    sources = [
        word
        for line in (DEPLOY / name).read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    ]
    assert len(sources) == count
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(f"!{part}" in ignored for part in (source, str(Path(source).parent))), source


def instructions(name):
    """(instruction, the rest) of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", (DEPLOY / name).read_text())
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith(("#", " "))]


@pytest.mark.parametrize("name", ["Dockerfile", "page.Dockerfile"])
def test_what_is_copied_is_readable_by_the_user_whatever_the_checkouts_umask(name):
    """COPY keeps the permissions of the checkout, and root is the owner."""
    last = [index for index, (word, _) in enumerate(instructions(name)) if word == "FROM"][-1]
    final = instructions(name)[last:]
    (user,) = [rest for word, rest in final if word == "USER"]
    assert user == "10001:10001"
    copied = [rest.split() for word, rest in final if word == "COPY" and "--from=build" not in rest]
    assert copied
    for words in copied:
        mode = words[0].removeprefix("--chmod=")
        assert mode in ("644", "755", "u=rwX,go=rX"), words
        scripts = any(word.endswith(("serve.py", "probe.py")) for word in words)
        assert (mode == "755") == scripts, words


def test_the_base_has_a_libtorch_that_the_library_needs():
    """26.07 is what was reckoned with: the server's limits on requests, LibTorch 2.10 or later."""
    found = instructions("Dockerfile")
    bases = [rest for word, rest in found if word == "FROM" or rest.startswith("TRITONSERVER=")]
    assert bases[1:] == ["${TRITONSERVER} AS build", "${TRITONSERVER}"]
    year, month = re.fullmatch(r"TRITONSERVER=nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", bases[0]).groups()
    assert (int(year), int(month)) >= (26, 7)


def test_the_library_is_built_for_the_gpus_that_a_build_argument_names():
    """An ARG holds for the stage in which it stands, and from its line on."""
    found = instructions("Dockerfile")
    argument = found.index(("ARG", 'WIDEFIELD_ARCHITECTURES=""'))
    (build,) = [index for index, (_, rest) in enumerate(found) if rest.endswith("kernels/native/build.py")]
    assert argument < build
    assert "FROM" not in [word for word, _ in found[argument:build]]


@pytest.fixture
def serve(tmp_path):
    """serve(*arguments, **environment) runs the entry point on a program that writes down what it is given."""
    spy = tmp_path / "tritonserver"
    spy.write_text(SPY.format(out=tmp_path, python=sys.executable))
    spy.chmod(0o755)
    lay_out(tmp_path)
    (tmp_path / "models/plain").mkdir(parents=True)
    (tmp_path / "models/plain/config.pbtxt").touch()
    base = {"PATH": os.environ["PATH"], "TRITONSERVER": str(spy), "WIDEFIELD_MODELS": str(tmp_path / "models")}

    def run(*arguments, **environment):
        command = [str(tmp_path / "serve.py"), *arguments]
        done = subprocess.run(command, env=base | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr, None, None

        def read(name):
            return dict(line.split("=", 1) for line in (tmp_path / name).read_text().splitlines() if "=" in line)

        (tmp_path / "said").write_text(done.stderr)
        return (tmp_path / "arguments").read_text().splitlines(), read("environment"), read("stub")

    return run


MIB = 2**20
LAUNCHED = """
import os, pathlib, types
from server.process import ServerProcess
log = pathlib.Path("/dev/stdout")
runtime = types.SimpleNamespace(environment=dict, folder="none", shm_prefix="none", log=log)
ServerProcess([os.environ["TRITONSERVER"]], runtime, 1).guard.wait()
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(8, 256, 64), (128, 256, 128), (8, 16, 16), (-1, -1, 64)], ids=str
)
@pytest.mark.usefixtures("serve")
def test_the_launcher_and_the_image_give_the_same_stacks(tmp_path, soft, hard, expected):
    """Without a limit a thread would have 2 MiB."""
    if hard == -1 != resource.getrlimit(resource.RLIMIT_STACK)[1]:
        pytest.skip("the hard limit is lower here")
    (tmp_path / "tritonserver").write_text("#!/bin/bash\nulimit -S -s\n")
    environment = {"TRITONSERVER": str(tmp_path / "tritonserver"), "WIDEFIELD_MODELS": str(tmp_path / "models")}
    limits = tuple(each if each == -1 else each * MIB for each in (soft, hard))
    for command in ([str(tmp_path / "serve.py")], [sys.executable, "-c", LAUNCHED]):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, limits),
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"{1024 * expected}\n", done.stderr


@pytest.mark.usefixtures("serve")
def test_the_entry_point_becomes_tritonserver(tmp_path):
    """The container's first process, which gets its signals; Python itself ignores SIGPIPE and SIGXFSZ."""
    (tmp_path / "tritonserver").write_text("#!/bin/sh\necho $$\ngrep SigIgn /proc/$$/status\n")
    environment = {"TRITONSERVER": str(tmp_path / "tritonserver"), "WIDEFIELD_MODELS": str(tmp_path / "models")}
    command = [str(tmp_path / "serve.py")]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
        pid, _, ignored = process.communicate()[0].split()
    assert int(pid) == process.pid
    assert not int(ignored, 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_tritonserver_is_preloaded_and_its_python_processes_are_not(serve, tmp_path):
    libraries = f"{tmp_path / 'libwidefield_fixes.so'}:{tmp_path / 'libwidefield.so'}"
    for own, expected in (({}, libraries), ({"LD_PRELOAD": "libm.so.6"}, f"{libraries}:libm.so.6")):
        _, server, stub = serve(**own)
        assert (server["LD_PRELOAD"], server["BASH_ENV"]) == (expected, str(tmp_path / "unload.sh"))
        assert not {"LD_PRELOAD", "BASH_ENV"} & stub.keys()
        assert server["LD_LIBRARY_PATH"] == stub["LD_LIBRARY_PATH"] == "/opt/tritonserver/backends/pytorch"


def test_other_libraries_and_no_fixes(serve, tmp_path):
    other = tmp_path / "other.so"
    other.touch()
    _, server, _ = serve(WIDEFIELD_LIBRARY=str(other), WIDEFIELD_FIXES="")
    assert server["LD_PRELOAD"] == str(other)
    _, server, _ = serve(WIDEFIELD_LIBRARY="", WIDEFIELD_FIXES=str(other))
    assert server["LD_PRELOAD"] == f"{other}:{tmp_path / 'libwidefield.so'}"
    for name in ("WIDEFIELD_LIBRARY", "WIDEFIELD_FIXES", "TRITONSERVER"):
        message, _, _ = serve(**{name: "/nowhere"})
        assert message == f"serve.py: /nowhere does not exist: mount it, or unset {name}\n"
    (tmp_path / "libwidefield.so").unlink()
    message, _, _ = serve()
    assert message == f"serve.py: {tmp_path / 'libwidefield.so'} does not exist: build the image anew\n"


def test_what_is_set(serve, tmp_path):
    arguments, environment, _ = serve(WIDEFIELD_MANAGEMENT_TOKEN="secret", WIDEFIELD_SHARED_MEMORY_TOKEN="shown")
    assert (ENVIRONMENT | SPIN).items() <= environment.items()
    hosts = dict.fromkeys(("http", "grpc", "metrics"), "0.0.0.0")
    ports = {"http": 8000, "grpc": 8001, "metrics": 8002}
    gpu = Path("/dev/nvidiactl").exists()
    common = common_options(str(tmp_path / "models"), hosts, ports, 30, ("secret", "shown"), {}, gpu)
    assert arguments == ["--model-control-mode=none", *common]
    assert not {"WIDEFIELD_MANAGEMENT_TOKEN", "WIDEFIELD_SHARED_MEMORY_TOKEN"} & environment.keys()


def test_what_is_served_unchecked_is_told(tmp_path, serve):
    (tmp_path / "models/backbone/1").mkdir(parents=True)
    (tmp_path / "models/backbone/config.pbtxt").touch()
    assert serve()[0]  # it starts all the same
    warning = "serve.py: warning: backbone/1: served unchecked, without build.json; build_models.py writes it\n"
    assert (tmp_path / "said").read_text() == warning
    (tmp_path / "models/backbone/1/build.json").write_text('{"files_sha256": {}}')
    serve()
    assert (tmp_path / "said").read_text() == ""


@pytest.mark.parametrize(
    ("threads", "told"),
    [
        (
            10,
            "a model computes with 10 threads, but this server may use 9 cores: {}, or raise the container's CPU limit",
        ),
        (9, ""),
        (5, ""),
        (4, "the models compute on no more than 4 of the 9 cores that this server may use: {}"),
    ],
)
def test_more_threads_than_cores_or_far_fewer_are_told_unless_a_gpu_computes(tmp_path, serve, threads, told):
    with (tmp_path / "cores.py").open("a") as file:
        file.write("\nusable_cores = lambda: 9\n")
    (tmp_path / "models/backbone").mkdir()
    config = f'parameters {{ key: "INTRA_OP_THREAD_COUNT" value {{ string_value: "{threads}" }} }}\n'
    (tmp_path / "models/backbone/config.pbtxt").write_text(config)
    for gpu in ("false", "true"):
        assert serve(WIDEFIELD_GPU=gpu)[0]  # it starts
        line = told.format("build with --threads 9") if gpu == "false" else ""
        assert (tmp_path / "said").read_text() == (f"serve.py: warning: {line}\n" if line else "")


def test_labels_that_would_be_served_otherwise_are_refused(tmp_path, serve):
    model = tmp_path / "models/classifier"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('output [{ name: "p" dims: 3 label_filename: "labels.txt" }]')
    (model / "labels.txt").write_text("a\nb\nc\n")
    assert serve()[0][-1].startswith("--")  # it starts
    (model / "labels.txt").write_text("a\nb\n")
    error, _, _ = serve()
    assert error.startswith(f"serve.py: {model}/labels.txt has 2 labels for 3 classes: write one label a line")
    assert len(error.splitlines()) == 1


def test_what_the_user_sets_stays(serve):
    arguments, environment, _ = serve(
        "--log-verbose=1", MALLOC_ARENA_MAX="4", LD_LIBRARY_PATH="/own", WIDEFIELD_DRAIN_SECONDS="50"
    )
    assert environment["MALLOC_ARENA_MAX"] == "4"
    assert environment["LD_LIBRARY_PATH"] == "/opt/tritonserver/backends/pytorch:/own"
    assert "--exit-timeout-secs=50" in arguments
    assert arguments[-1] == "--log-verbose=1"


@pytest.mark.parametrize("host", ["", "127.0.0.2", "::", "::1"])
@pytest.mark.parametrize("http_host", ["", "127.0.0.1", "::1"])
def test_addresses(serve, host, http_host):
    arguments, _, _ = serve(WIDEFIELD_HOST=host, WIDEFIELD_HTTP_HOST=http_host)
    host = host or "0.0.0.0"
    for service, its_host in (("http", http_host or host), ("grpc", host), ("metrics", host)):
        assert f"--{service}-address={listen_address(service, its_host)}" in arguments


def test_tls(serve, tmp_path):
    authority = Authority(tmp_path / "tls")
    tls = Tls(*authority.issue("server"), authority.ca)
    variables = {
        "WIDEFIELD_TLS_CERT": str(tls.certificate),
        "WIDEFIELD_TLS_KEY": str(tls.key),
        "WIDEFIELD_TLS_CLIENT_CA": str(tls.client_ca),
    }
    arguments, _, _ = serve(**variables)
    assert {f"--{name}={value}" for name, value in tls.options().items()} < set(arguments)
    assert "--http-address=127.0.0.1" in arguments
    assert "--grpc-address=0.0.0.0" in arguments
    del variables["WIDEFIELD_TLS_CLIENT_CA"]
    arguments, _, _ = serve(**variables)
    assert {f"--{name}={value}" for name, value in Tls(tls.certificate, tls.key).options().items()} < set(arguments)
    assert not [each for each in arguments if "mutual" in each or "root-cert" in each]
    for name in variables:
        error, _, _ = serve(**(variables | {name: str(tmp_path / "none")}))
        assert f"{name} is {tmp_path / 'none'}, which is not a readable file" in error
        error, _, _ = serve(**{key: value for key, value in variables.items() if key != name})
        assert f"{name} is not set" in error
    error, _, _ = serve(**(variables | {"WIDEFIELD_TLS_KEY": str(authority.issue("other")[1])}))
    assert error.startswith("serve.py: WIDEFIELD_TLS_KEY is ")
    assert not [each for each in serve()[0] if "ssl" in each]


def test_the_tokens_line_may_end(serve):
    arguments, _, _ = serve(WIDEFIELD_MANAGEMENT_TOKEN="secret\r\n")
    assert [each for each in arguments if each.endswith(f"{MANAGEMENT_HEADER}=secret")]


def test_the_tokens_are_random_unless_named(serve):
    def tokens():
        return [each.rpartition("=")[2] for each in serve()[0] if each.startswith("--http-restricted-api=")]

    found = tokens() + tokens()
    assert [len(each) for each in found] == [32] * 4
    assert len(set(found)) == 4


def test_gpu(serve):
    off = "--allow-gpu-metrics=false"
    assert off in serve(WIDEFIELD_GPU="false")[0]
    assert off not in serve(WIDEFIELD_GPU="true")[0]


def test_a_model_that_is_not_what_was_built_is_not_served(serve, tmp_path):
    """The newest version counts, as for tritonserver; one without a build.json is taken as it is."""
    model = tmp_path / "models" / "backbone"
    (model / "9").mkdir(parents=True)
    (model / "config.pbtxt").touch()
    (model / "9" / "model.pt").write_bytes(b"older and changed")
    (model / "9" / "build.json").write_text('{"files_sha256": {"model.pt": "0"}}')
    newest = model / "10"
    newest.mkdir()
    (newest / "model.pt").write_bytes(b"built")
    assert serve()[0]
    digest = hashlib.sha256(b"built").hexdigest()
    (newest / "build.json").write_text(json.dumps({"files_sha256": {"model.pt": digest}}))
    assert serve()[0]
    (newest / "model.pt").write_bytes(b"buil")
    message, arguments, _ = serve()
    assert arguments is None
    found = f"sha256 {hashlib.sha256(b'buil').hexdigest()[:12]}..., not {digest[:12]}..."
    remedy = f"build it again, or remove {newest} to go back to the version before"
    remedy += f"; if the change is intended, remove {newest / 'build.json'}"
    assert message == f"serve.py: {newest / 'model.pt'} is not what was built ({found}): {remedy}\n"


def test_missing_models_are_named(serve, tmp_path):
    message, _, _ = serve(WIDEFIELD_MODELS="/nowhere")
    assert message == "serve.py: /nowhere does not exist: mount the model repository there, or set WIDEFIELD_MODELS\n"
    (tmp_path / "empty").mkdir()  # as a subPath that the volume does not have
    message, _, _ = serve(WIDEFIELD_MODELS=str(tmp_path / "empty"))
    assert message.startswith(f"serve.py: {tmp_path}/empty holds no model (no */config.pbtxt): is the right folder ")
