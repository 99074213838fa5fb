"""Checks serve.py's variables: tritonserver would say late what is wrong, as a port that is in use, or not at all.

As server/preflight.py and server/tls.py do for `python -m server`, but with what the image has: the standard library.
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
    """Raises `SettingError`. An empty variable is as none."""
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


def number(name: str, value: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", value) or not least <= int(value) <= most:
        raise SettingError(f"{name} is {value!r}: give a whole number from {least} to {most}")
    return int(value)


def check_host(name: str, host: str) -> None:
    """Told a name, tritonserver's HTTP listens on 255.255.255.255 and says that all is well."""
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
    context.set_ciphers("ALL:@SECLEVEL=0")  # a key that is too weak is not this check's
    for name, path in files.items():
        try:
            if path != key:
                context.load_verify_locations(path)
        except ssl.SSLError:
            raise SettingError(f"{name} is {path}, which holds no certificate: give a PEM file") from None
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # asks nobody for a passphrase
    except ssl.SSLError as error:
        if "MISMATCH" in str(error.reason):
            what = f"does not belong to WIDEFIELD_TLS_CERT ({certificate}): give its own key"
        else:
            what = "holds no private key that can be used: give a PEM file without a passphrase"
        raise SettingError(f"WIDEFIELD_TLS_KEY is {key}, which {what}") from None
