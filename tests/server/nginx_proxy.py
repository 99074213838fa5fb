"""nginx with deploy/proxy/nginx.conf before a real server, for the tests."""

import contextlib
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

from benchmarks.programs import find_program
from server.preflight import free_ports

CONFIG = Path(__file__).parents[2] / "deploy" / "proxy" / "nginx.conf"
PATIENCE = 2  # seconds, in the place of the configuration's ten


def replaced(text, pairs):
    for old, new in pairs.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(server, authority, folder):
    """nginx with the file of deploy/, on a free port; only paths, ports and the patience are the tests'."""
    certificate, key = authority.issue("proxy")
    (port,) = free_ports(["127.0.0.1"])
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    private = "\n".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    text = replaced(
        CONFIG.read_text(),
        {
            "listen 8443": f"listen 127.0.0.1:{port}",
            "server 127.0.0.1:8000": f"server {server.http_url}",
            "/etc/widefield/tls/server.crt": str(certificate),
            "/etc/widefield/tls/server.key": str(key),
            "/etc/widefield/tls/client-ca.crt": str(authority.ca),
            "/run/widefield-nginx.pid": str(folder / "pid"),
            "client_header_timeout 10s": f"client_header_timeout {PATIENCE}s",
            "client_body_timeout 10s": f"client_body_timeout {PATIENCE}s",
            "lingering_time 10s": f"lingering_time {PATIENCE}s",
            "access_log off;": f"access_log off;\n{private}",
        },
    )
    config = folder / "nginx.conf"
    config.write_text(text)
    options = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"  # the test's folder is its owner's
    with (folder / "log").open("wb") as log:
        command = [find_program("nginx"), "-p", str(folder), "-c", str(config), "-g", options]
        process = subprocess.Popen(command, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield SimpleNamespace(port=port, url=f"127.0.0.1:{port}", process=psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(20)


def context_of(root, pair=None):
    context = ssl.create_default_context(cafile=str(root))
    if pair:
        context.load_cert_chain(*pair)
    return context
