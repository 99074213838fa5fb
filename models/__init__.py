"""Large-kernel image classifiers: build, load, save and re-parameterise them."""

from models.complexity import count_macs, count_parameters
from models.config import ModelConfig
from models.masked import MaskedBatchNorm2d, MaskedPretrainer
from models.registry import ARCHITECTURES, Architecture, create_model
from models.reparameterize import reparameterize
from models.replknet import RepLKNet
from models.weights import WeightsError, load_checkpoint, load_config, load_weights, save_checkpoint

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "MaskedBatchNorm2d",
    "MaskedPretrainer",
    "ModelConfig",
    "RepLKNet",
    "WeightsError",
    "count_macs",
    "count_parameters",
    "create_model",
    "load_checkpoint",
    "load_config",
    "load_weights",
    "reparameterize",
    "save_checkpoint",
]
