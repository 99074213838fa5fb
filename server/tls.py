"""The certificate of the gRPC endpoint, and whether clients must have one too."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.errors import OptionError
from server.tritonserver_options import tls_options


@dataclass(frozen=True)
class Tls:
    """PEM files. `client_ca`: clients must have a certificate that one of these has signed (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raise `OptionError` for unusable files; tritonserver would report a port in use, or nothing."""
        certificate = _certificates(self.certificate, "--tls-certificate")[0]
        key = _read(self.key, "--tls-key")
        try:
            public, certified = load_pem_private_key(key, None).public_key(), certificate.public_key()
        except TypeError:
            raise OptionError(
                f"--tls-key {self.key} has a passphrase: tritonserver reads only a key without one"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise OptionError(f"--tls-key {self.key} holds no private key that can be used: give a PEM file") from None
        if public != certified:
            raise OptionError(
                f"--tls-key {self.key} does not belong to --tls-certificate {self.certificate}: give its own key"
            )
        if self.client_ca is not None:
            _certificates(self.client_ca, "--tls-client-ca")

    def options(self) -> dict[str, str]:
        """Return tritonserver's options."""
        client_ca = None if self.client_ca is None else str(self.client_ca.absolute())
        return tls_options(str(self.certificate.absolute()), str(self.key.absolute()), client_ca)


def tls_of(certificate: str | None, key: str | None, client_ca: str | None) -> Tls | None:
    """Return None if no file is given. Raises `OptionError` if the certificate or the key is missing."""
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise OptionError("TLS needs both --tls-certificate and --tls-key")
    return Tls(Path(certificate), Path(key), None if client_ca is None else Path(client_ca))


def _certificates(path: Path, option: str) -> list[x509.Certificate]:
    """Read the certificates of a file. Raises `OptionError` if there is none or one is not valid today."""
    data = _read(path, option)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise OptionError(f"{option} {path} holds no certificate: give a PEM file") from None
    now = datetime.datetime.now(datetime.timezone.utc)
    for each in found:
        name = each.subject.rfc4514_string()
        if each.not_valid_after_utc < now:
            raise OptionError(f"{option} {path}: {name} expired on {each.not_valid_after_utc:%Y-%m-%d}: renew it")
        if each.not_valid_before_utc > now:
            raise OptionError(f"{option} {path}: {name} is valid from {each.not_valid_before_utc:%Y-%m-%d} only")
    return found


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"{option} {path} cannot be read ({error.strerror}): name a PEM file") from None
