"""The config of a checkpoint, stored beside its weights."""

import operator
from dataclasses import dataclass, field

from models.errors import SettingsError
from models.registry import input_defaults

INTERPOLATIONS = ("bicubic", "bilinear")
CROP_MODES = ("center", "squash", "border")


def is_one_line(label: str) -> bool:
    """Whether `label` can be a line of a server's labels.txt: not blank, without a line break."""
    return bool(label.strip()) and "\n" not in label


@dataclass(frozen=True)
class ModelConfig:
    """config.json: a checkpoint's architecture and how its images are prepared.

    Sizes in pixels, mean and std on the 0..1 scale. A value left at 0 or empty is the architecture's own. Raises
    `ValueError` for impossible values, `SettingsError` for those of the images that commands have options for.
    """

    arch: str
    num_classes: int = 1000
    image_size: int = 0
    crop_pct: float = 0.0
    interpolation: str = ""
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    labels: list[str] | None = None
    crop_mode: str = ""

    def __post_init__(self) -> None:
        for name in ("num_classes", "image_size"):
            try:
                object.__setattr__(self, name, operator.index(getattr(self, name)))  # NumPy's integers are no JSON
            except TypeError:
                raise ValueError(f"{name} {getattr(self, name)!r}: a whole number is needed") from None
        if not isinstance(self.crop_pct, (int, float)):
            raise ValueError(f"crop_pct {self.crop_pct!r}: a number is needed")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(isinstance(each, (int, float)) for each in value):
                raise ValueError(f"{name} {value!r:.80}: three numbers are needed")
        own = input_defaults(self.arch)
        for name in ("image_size", "crop_pct", "interpolation", "crop_mode", "mean", "std"):
            value = getattr(self, name) or getattr(own, name)
            object.__setattr__(self, name, list(value) if name in ("mean", "std") else value)
        if self.num_classes < 1:
            raise ValueError(f"num_classes {self.num_classes}: at least 1 is needed")
        if self.image_size < 32:
            raise SettingsError(f"image_size {self.image_size}: the model halves its input five times, 32 is the least")
        if not 0.1 <= self.crop_pct <= 1.0:
            raise SettingsError(f"crop_pct {self.crop_pct}: the share that is kept must be 0.1 to 1")
        if self.interpolation not in INTERPOLATIONS:
            raise SettingsError(f"interpolation {self.interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise SettingsError(f"crop_mode {self.crop_mode!r}: choose one of {', '.join(CROP_MODES)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SettingsError(f"mean {self.mean}, std {self.std}: three numbers each, std above 0")
        if not all(0 <= value <= 1 for value in (*self.mean, *self.std)):
            raise SettingsError(f"mean {self.mean}, std {self.std}: both are on the 0..1 scale; divide by 255")
        if self.labels is None:
            return
        if not isinstance(self.labels, list) or not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels {self.labels!r:.80}: a list of strings is needed")
        if len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for num_classes {self.num_classes}: one per class is needed")

    @property
    def fill(self) -> tuple[int, int, int]:
        """RGB, 0..255, around an image that does not fill its crop, as in timm: the mean for border, else black."""
        red, green, blue = (round(255 * value) if self.crop_mode == "border" else 0 for value in self.mean)
        return red, green, blue
