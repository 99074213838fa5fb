"""Checks the entry point's environment variables before the start; tritonserver reports mistakes late or never.

server/preflight.py and server/tls.py do the same for `python -m server`. This file has only the standard library.
"""

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Mapping

PORTS = {
    "http": ("WIDEFIELD_HTTP_PORT", "8000"),
    "grpc": ("WIDEFIELD_GRPC_PORT", "8001"),
    "metrics": ("WIDEFIELD_METRICS_PORT", "8002"),
}
TLS = ("WIDEFIELD_TLS_CERT", "WIDEFIELD_TLS_KEY", "WIDEFIELD_TLS_CLIENT_CA")
TOKENS = ("WIDEFIELD_MANAGEMENT_TOKEN", "WIDEFIELD_SHARED_MEMORY_TOKEN")


class SettingError(Exception):
    """The message names the variable, its value unless that is secret, and what to give."""


def check_settings(environment: Mapping[str, str]) -> None:
    """Raise `SettingError` for a variable that cannot be used. An empty variable counts as unset."""
    ports: dict[int, str] = {}
    for name, default in PORTS.values():
        port = number(name, environment.get(name) or default, 1, 65535)
        if port in ports:
            raise SettingError(f"{name} is {port}, and so is {ports[port]}: give each its own")
        ports[port] = name
    number("WIDEFIELD_DRAIN_SECONDS", environment.get("WIDEFIELD_DRAIN_SECONDS") or "30", 0, 86400)
    gpu = environment.get("WIDEFIELD_GPU") or "false"
    if gpu not in ("true", "false"):
        raise SettingError(f"WIDEFIELD_GPU is {gpu!r}: give true or false")
    for name in ("WIDEFIELD_HOST", "WIDEFIELD_HTTP_HOST"):
        check_host(name, environment.get(name) or "0.0.0.0")
    for name in TOKENS:
        if not re.fullmatch(r"[\x21-\x7e]*", re.sub(r"[\r\n]", "", environment.get(name, ""))):
            raise SettingError(f"{name} has spaces or non-ASCII characters: `openssl rand -hex 16` makes one")
    certificate, key, client_ca = (environment.get(name, "") for name in TLS)
    if certificate or key or client_ca:
        check_tls(certificate, key, client_ca)


def http_host(environment: Mapping[str, str]) -> str:
    """Return the address for HTTP: with TLS, which tritonserver has for gRPC only, inside the container or pod."""
    own = "127.0.0.1" if environment.get("WIDEFIELD_TLS_CERT") else environment.get("WIDEFIELD_HOST") or "0.0.0.0"
    return environment.get("WIDEFIELD_HTTP_HOST") or own


def number(name: str, value: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", value) or not least <= int(value) <= most:
        raise SettingError(f"{name} is {value!r}: give a whole number from {least} to {most}")
    return int(value)


def check_host(name: str, host: str) -> None:
    """Raise `SettingError` unless `host` is an address of this container.

    Given a host name, tritonserver's HTTP listens on 255.255.255.255 and reports no error.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise SettingError(f"{name} is {host!r}: give an address without brackets, such as 0.0.0.0 or ::1") from None
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise SettingError(
            f"{name} is {host}, which is not an address of this container ({error.strerror}): use 0.0.0.0"
        ) from None


def check_tls(certificate: str, key: str, client_ca: str) -> None:
    files = {"WIDEFIELD_TLS_CERT": certificate, "WIDEFIELD_TLS_KEY": key}
    if client_ca:
        files["WIDEFIELD_TLS_CLIENT_CA"] = client_ca
    for name, path in files.items():
        if not (os.path.isfile(path) and os.access(path, os.R_OK)):
            raise SettingError(f"{name} is {path or 'not set'}, which is not a readable file: mount it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")  # this check accepts weak keys
    for name, path in files.items():
        try:
            if path != key:
                context.load_verify_locations(path)
        except ssl.SSLError:
            raise SettingError(f"{name} is {path}, which holds no certificate: give a PEM file") from None
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # do not prompt for a passphrase
    except ssl.SSLError as error:
        if "MISMATCH" in str(error.reason):
            what = f"does not belong to WIDEFIELD_TLS_CERT ({certificate}): give its own key"
        else:
            what = "holds no private key that can be used: give a PEM file without a passphrase"
        raise SettingError(f"WIDEFIELD_TLS_KEY is {key}, which {what}") from None
