"""Throw-away certificates, and a gRPC server asked with them."""

import datetime
import inspect
import ipaddress
import ssl
from dataclasses import dataclass

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.grpc import service_pb2, service_pb2_grpc


@dataclass
class Authority:
    """Signs in `folder`: NAME.crt and NAME.key; its own certificate is ca.crt."""

    folder: object

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{self.folder.name} root")])
        usage = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False) | {"key_cert_sign": True}
        extensions = [(x509.BasicConstraints(ca=True, path_length=0), True), (x509.KeyUsage(**usage), True)]
        self.ca = self._write("ca.crt", self._signed(self._name, self._key.public_key(), 1, extensions))

    def issue(self, name, days=1, begins=-1):
        """The paths of a new certificate for 127.0.0.1, and of its key.

        Valid from so many days after now, for `days` and one more.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._signed(
            subject, key.public_key(), days, [(x509.SubjectAlternativeName(names), False)], begins
        )
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return self._write(f"{name}.crt", certificate), self.folder / f"{name}.key"

    def _signed(self, subject, public_key, days, extensions, begins=-1):
        begin = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=begins)
        builder = x509.CertificateBuilder(self._name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=1 + days, minutes=-1))
        identifiers = [  # Python 3.13 refuses certificates without
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
        ]
        for extension, critical in identifiers + extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name, certificate):
        path = self.folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path


def context_of(root, pair=None):
    """A client's context that trusts `root`, with a certificate of its own."""
    context = ssl.create_default_context(cafile=str(root))
    if pair:
        context.load_cert_chain(*pair)
    return context


def ready(url, root, pair=None):
    """Return the server's answer over TLS. Raises grpc.RpcError."""
    key, certificate = (pair[1].read_bytes(), pair[0].read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(root.read_bytes(), key, certificate)
    with grpc.secure_channel(url, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10).ready


def refused(url, *arguments):
    """Whether there is no connection; fails where there is an answer."""
    with pytest.raises(grpc.RpcError) as caught:
        ready(url, *arguments)
    return caught.value.code() == grpc.StatusCode.UNAVAILABLE
