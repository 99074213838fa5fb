"""Large-kernel image classifiers: build, load, save and re-parameterise them."""

from models.checkpoint import checkpoint_config, classifier_config, load_checkpoint, load_config, save_checkpoint
from models.class_map import WithClassMap, class_maps
from models.classifier import check_logits, head_names, linear_head, pooled_features
from models.complexity import count_macs, count_parameters
from models.config import ModelConfig
from models.masked import MaskedBatchNorm2d, MaskedPretrainer
from models.registry import ARCHITECTURES, Architecture, check_arch, create_model, create_replknet
from models.reparameterize import reparameterize
from models.replknet import RepLKNet
from models.weight_files import WeightsError
from models.weights import count_classes, load_weights

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "MaskedBatchNorm2d",
    "MaskedPretrainer",
    "ModelConfig",
    "RepLKNet",
    "WeightsError",
    "WithClassMap",
    "check_arch",
    "check_logits",
    "checkpoint_config",
    "class_maps",
    "classifier_config",
    "count_classes",
    "count_macs",
    "count_parameters",
    "create_model",
    "create_replknet",
    "head_names",
    "linear_head",
    "load_checkpoint",
    "load_config",
    "load_weights",
    "pooled_features",
    "reparameterize",
    "save_checkpoint",
]
