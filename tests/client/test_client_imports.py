"""What `import client` costs an application."""

import subprocess
import sys

import pytest

import client
import client.testing

HEAVY = {"aiohttp", "torch", "torchvision", "timm", "triton", "gevent", "PIL", "rich", "tritonclient", "grpc"}


def loaded_after(code: str) -> set[str]:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_import_is_light() -> None:
    assert loaded_after("import client") & HEAVY == set()


@pytest.mark.parametrize(("protocol", "needed"), [("http", set()), ("grpc", {"tritonclient", "grpc"})])
def test_each_protocol_loads_its_own(protocol: str, needed: set[str]) -> None:
    code = f"import client; client.Classifier(protocol={protocol!r})"
    assert loaded_after(code) & HEAVY == needed


def test_public_names() -> None:
    assert set(client.__all__) == {
        "Answer",
        "AsyncClassifier",
        "AsyncTransport",
        "Classifier",
        "ClassifierError",
        "ConnectionBrokenError",
        "ConnectionFailedError",
        "Crop",
        "DeadlineExceededError",
        "Explanation",
        "Headers",
        "ImageLike",
        "InferenceError",
        "InvalidImageError",
        "ModelNotFoundError",
        "ModelStatus",
        "NotFiniteError",
        "Outcome",
        "Prediction",
        "ProtocolError",
        "QueueFullError",
        "Request",
        "ServerNotReadyError",
        "ServerStatus",
        "ServerUnavailableError",
        "STEPS",
        "TLS",
        "TLSLike",
        "Times",
        "Transport",
        "find_images",
        "overlay",
        "parse_headers",
        "step_times",
    }
    assert all(hasattr(client, name) for name in client.__all__)
    assert set(client.testing.__all__) == {"AsyncFakeTransport", "FakeTransport", "Reply"}
