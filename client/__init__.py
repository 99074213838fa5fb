"""Ask a Widefield server what is in a picture, over gRPC or HTTP.

from client import Classifier

with Classifier("127.0.0.1:8001") as classifier:
    for prediction in classifier.classify("cat.jpg", top=3):
        print(prediction.label, prediction.probability)
"""

from client._classifier import Classifier
from client._errors import (
    ClassifierError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    ProtocolError,
    QueueFullError,
    ServerUnavailableError,
)
from client._images import ImageLike
from client._paths import find_images
from client._prediction import Prediction
from client._transport import Transport

__all__ = [
    "Classifier",
    "ClassifierError",
    "DeadlineExceededError",
    "ImageLike",
    "InferenceError",
    "InvalidImageError",
    "ModelNotFoundError",
    "Prediction",
    "ProtocolError",
    "QueueFullError",
    "ServerUnavailableError",
    "Transport",
    "find_images",
]
