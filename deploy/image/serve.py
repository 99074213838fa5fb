#!/usr/bin/env python3
"""The image's entry point: checks the settings and the models, then replaces itself with tritonserver.

The operator's library and the fixes are preloaded into tritonserver but not into its Python processes. This file and
the modules beside it in the image use only the standard library.
"""

import os
import re
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from check_settings import PORTS, TLS, TOKENS, SettingError, check_settings, http_host
from checksums import ChecksumError, compare_newest, unchecked
from cores import too_few, too_many
from labels import LabelsError, check_all_labels
from tritonserver_options import before, common_environment, common_options, stack_limits, tls_options

HERE = Path(__file__).resolve().parent


def main(arguments: list[str], variables: Mapping[str, str]) -> None:
    """Become tritonserver, with `arguments` added to its command line. Raise `SystemExit` if it cannot be started."""
    server = variables.get("TRITONSERVER") or "/opt/tritonserver/bin/tritonserver"
    models = Path(variables.get("WIDEFIELD_MODELS") or "/models")
    fixes = variables.get("WIDEFIELD_FIXES", str(HERE / "libwidefield_fixes.so"))  # empty: none
    library = variables.get("WIDEFIELD_LIBRARY") or str(HERE / "libwidefield.so")
    preload = [path for path in (fixes, library) if path]
    for name, path in {"TRITONSERVER": server, "WIDEFIELD_FIXES": fixes, "WIDEFIELD_LIBRARY": library}.items():
        if path and not os.path.exists(path):
            remedy = f"mount it, or unset {name}" if variables.get(name) else "build the image anew"
            sys.exit(f"serve.py: {path} does not exist: {remedy}")
    if not os.path.exists(models):
        sys.exit(f"serve.py: {models} does not exist: mount the model repository there, or set WIDEFIELD_MODELS")
    try:
        check_settings(variables)
        compare_newest(models)
        check_all_labels(models)
    except (SettingError, ChecksumError, LabelsError, OSError) as error:
        sys.exit(f"serve.py: {error}")
    if not any(models.glob("*/config.pbtxt")):  # tritonserver would start, and answer that it is ready
        sys.exit(f"serve.py: {models} holds no model (no */config.pbtxt): is the right folder mounted, subPath too?")
    for warning in filter(None, warnings(models, variables)):
        print(f"serve.py: warning: {warning}", file=sys.stderr, flush=True)
    libtorch = variables.get("WIDEFIELD_LIBTORCH") or "/opt/tritonserver/backends/pytorch"
    environment = {
        **{name: value for name, value in variables.items() if name not in TOKENS},
        **common_environment(variables),
        "LD_LIBRARY_PATH": before([libtorch], variables.get("LD_LIBRARY_PATH")),
        "LD_PRELOAD": before(preload, variables.get("LD_PRELOAD")),
        "BASH_ENV": str(HERE / "unload.sh"),  # read by bash before it starts a Python process
    }
    resource.setrlimit(resource.RLIMIT_STACK, stack_limits())
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python; tritonserver would inherit that
        signal.signal(number, signal.SIG_DFL)
    os.execve(server, [server, *options(models, variables), *arguments], environment)


def warnings(models: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each thing that works, but badly; empty if it does not."""
    yield unchecked(models)
    if not has_gpu(variables):
        configs = [path.read_text(errors="replace") for path in models.glob("*/config.pbtxt")]
        if said := too_many(configs):
            yield f"{said}, or raise the container's CPU limit"
        yield too_few(configs)


def has_gpu(variables: Mapping[str, str]) -> bool:
    return {"true": True, "false": False}.get(variables.get("WIDEFIELD_GPU", ""), os.path.exists("/dev/nvidiactl"))


def options(models: Path, variables: Mapping[str, str]) -> list[str]:
    """Return tritonserver's command-line options. `variables` must have passed `check_settings`."""
    certificate, key, client_ca = (variables.get(name, "") for name in TLS)
    host = variables.get("WIDEFIELD_HOST") or "0.0.0.0"
    hosts = {"http": http_host(variables), "grpc": host, "metrics": host}
    ports = {service: int(variables.get(name) or default) for service, (name, default) in PORTS.items()}
    drain_seconds = int(variables.get("WIDEFIELD_DRAIN_SECONDS") or 30)
    tokens = [re.sub(r"[\r\n]", "", variables.get(name, "")) for name in TOKENS]  # such as a file's last newline
    tls = tls_options(certificate, key, client_ca) if certificate else {}
    common = common_options(str(models), hosts, ports, drain_seconds, tokens, tls, has_gpu(variables))
    return ["--model-control-mode=none", *common]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while files are compared
    main(sys.argv[1:], os.environ)
