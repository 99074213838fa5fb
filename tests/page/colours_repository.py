"""A repository with build_models.py's names, made in a second: it finds a picture's colour, and maps where that is."""

import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
COLOURS = {
    "red": (0.8, 0.1, 0.1),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.95, 0.9, 0.2),
    "green": (0.2, 0.65, 0.2),
    "blue": (0.15, 0.25, 0.8),
    "purple": (0.5, 0.15, 0.6),
    "pink": (0.95, 0.55, 0.7),
    "white": (0.95, 0.95, 0.95),
}
SIDE, CELL = 224, 8  # pixels
MAP = SIDE // CELL
CPU = "instance_group [{ kind: KIND_CPU count: 1 }]\n"
ONE_THREAD = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }\n'


class Backbone(nn.Module):
    """pixels [B,224,224,3] uint8 -> logits [B,8], and the best class's map [B,28,28], whose mean its logit is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("colours", torch.tensor(list(COLOURS.values())))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells = pixels.float().reshape(-1, 28, 8, 28, 8, 3).mean((2, 4)) / 255  # [B,28,28,3]
        distance = (cells[:, None] - self.colours[:, None, None]).square().sum(4)  # [B,8,28,28]
        maps = 20 * torch.exp(-distance / 0.1)
        logits = maps.mean((2, 3))
        best = logits.argmax(1)
        return logits, maps[torch.arange(maps.shape[0]), best]


class Softmax(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)


def tensor(name: str, kind: str, *sizes: int, more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: {list(sizes)} {more} }}'


def model(name: str, backend: str, inputs: str, outputs: str, rest: str) -> str:
    kind = "platform" if backend == "ensemble" else "backend"
    return f'name: "{name}" {kind}: "{backend}" max_batch_size: 8\ninput [{inputs}]\noutput [{outputs}]\n{rest}'


def step(name: str, source: str, *results: str) -> str:
    outputs = " ".join(f'output_map {{ key: "{each}" value: "{each}" }}' for each in results)
    return f'{{ model_name: "{name}" model_version: -1 input_map {{ key: "{source}" value: "{source}" }} {outputs} }}'


def write_colours_repository(root: Path, explained: bool = True) -> Path:
    """`classifier`, its three steps, and, if `explained`, `classifier_explained`."""
    image, pixels = tensor("image", "STRING", 1), tensor("pixels", "UINT8", SIDE, SIDE, 3)
    logits, class_map = tensor("logits", "FP32", len(COLOURS)), tensor("class_map", "FP32", MAP, MAP)
    crop = tensor("crop", "FP32", 4)
    probabilities = tensor("probabilities", "FP32", len(COLOURS))
    labelled = tensor("probabilities", "FP32", len(COLOURS), more='label_filename: "labels.txt"')
    settings = {"image_size": SIDE, "resize_size": SIDE, "interpolation": "bicubic"}
    preprocess = "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in settings.items())
    configs = {
        "preprocess": model("preprocess", "python", image, f"{pixels}, {crop}", CPU + preprocess),
        "backbone": model("backbone", "pytorch", pixels, f"{logits}, {class_map}", CPU + ONE_THREAD),
        "softmax": model("softmax", "pytorch", logits, probabilities, CPU + ONE_THREAD),
    }
    for name, more in {"classifier": (), "classifier_explained": ("crop", "class_map")}.items():
        steps = [step("preprocess", "image", "pixels", *more[:1]), step("backbone", "pixels", "logits", *more[1:])]
        scheduling = (
            f"ensemble_scheduling {{ step [{', '.join([*steps, step('softmax', 'logits', 'probabilities')])}] }}"
        )
        outputs = ", ".join([labelled, *([class_map, crop] if more else [])])
        if explained or not more:
            configs[name] = model(name, "ensemble", image, outputs, scheduling)
    for name, text in configs.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(text)
        (root / name / "labels.txt").write_text("".join(f"{label}\n" for label in COLOURS))
    for source in ROOT.glob("model_repository/preprocess/1/*.py"):
        shutil.copy(source, root / "preprocess/1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what tritonserver reads
        for name, network in {"backbone": Backbone(), "softmax": Softmax()}.items():
            torch.jit.script(network.eval()).save(str(root / name / "1/model.pt"))
    return root
