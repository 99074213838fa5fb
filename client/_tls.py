"""The TLS settings of encrypted connections, for both protocols."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class TLS:
    """The authorities to trust and the client's own certificate, as PEM files.

    Attributes:
        root: certificates of the authorities to trust; None: those that this system trusts.
        certificate, key: the client's own, if the server asks for one; both or neither.

    Raises `ValueError` for one without the other, and for a file that is not there.
    """

    root: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS takes the client's certificate and its key together: give both or neither")
        for path in (self.root, self.certificate, self.key):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"TLS: no such file: {os.fspath(path)}: check the path")


TLSLike: TypeAlias = "TLS | str | os.PathLike[str] | bool | None"


def as_tls(tls: TLSLike) -> TLS | None:
    """Convert to `TLS`: True means the system's roots, a path means that root. Raises `ValueError`."""
    if tls is None or isinstance(tls, TLS):
        return tls
    if isinstance(tls, bool):
        return TLS() if tls else None
    if not isinstance(tls, (str, os.PathLike)):
        raise ValueError(f"tls is {tls!r}: give a TLS, the path of a root certificate, or True")
    return TLS(root=tls)


def ssl_context(tls: TLS) -> ssl.SSLContext:
    """Create the context for HTTPS. Raises `ValueError` if a file holds no certificate or key."""
    try:
        context = ssl.create_default_context(cafile=tls.root)
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"TLS: {error}: give PEM files [{tls}]") from error
    return context


def grpc_credentials(tls: TLS) -> "grpc.ChannelCredentials":
    """Create the credentials for gRPC. Raises `ValueError` as `ssl_context` does; gRPC would only say "unavailable"."""
    import grpc

    ssl_context(tls)
    root = tls.root if tls.root is not None else system_roots()
    files = (root, tls.key, tls.certificate)
    return grpc.ssl_channel_credentials(*(None if file is None else Path(file).read_bytes() for file in files))


def system_roots() -> Path | None:
    """The file of the authorities that this system trusts, as OpenSSL finds it; None: gRPC's own list."""
    paths = ssl.get_default_verify_paths()
    files = [paths.cafile, paths.capath and os.path.join(paths.capath, "ca-certificates.crt")]
    return next((Path(file) for file in files if file and os.path.isfile(file)), None)
