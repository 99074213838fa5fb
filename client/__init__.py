"""Ask a Widefield server what is in a picture, over gRPC or HTTP.

from client import Classifier

with Classifier("127.0.0.1:8001") as classifier:
    for prediction in classifier.classify("cat.jpg", top=3):
        print(prediction.label, prediction.probability)
"""

from client._async_classifier import AsyncClassifier
from client._classifier import Classifier
from client._errors import (
    ClassifierError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    NotFiniteError,
    ProtocolError,
    QueueFullError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from client._headers import Headers, parse_headers
from client._images import ImageLike
from client._overlay import overlay
from client._prediction import Prediction
from client._request import Answer, Crop, Explanation, Request
from client._session import Outcome
from client._sources import find_images
from client._status import STEPS, ModelStatus, ServerStatus, Times, step_times
from client._tls import TLS, TLSLike
from client._transport import AsyncTransport, Transport

__all__ = [
    "STEPS",
    "TLS",
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
    "TLSLike",
    "Times",
    "Transport",
    "find_images",
    "overlay",
    "parse_headers",
    "step_times",
]
