"""TorchScript models that try the pytorch backend's rules, and their configs."""

import json
from pathlib import Path

import torch
from torch import Tensor


class SumDifference(torch.nn.Module):
    def forward(self, a: Tensor, b: Tensor):
        return a + b, a - b


class Sizes(torch.nn.Module):
    """Its input, and the batch size that it was called with."""

    def forward(self, x: Tensor):
        return x, torch.zeros_like(x[:, 0]) + x.shape[0]


class TupleWithInteger(torch.nn.Module):
    """oneDNN graph fusion raises an internal error on this one, saved and loaded."""

    def forward(self, x: Tensor):
        return x, torch.full((x.shape[0],), x.shape[0], dtype=torch.int64)


class Powers(torch.nn.Module):
    """What oneDNN graph fusion makes of the loop's start has no input: the products are of constants."""

    def forward(self, x: Tensor):
        power = torch.ones([2, 2])
        for _ in range(4):
            power = power @ power / 2.0
        return x @ power


class Picky(torch.nn.Module):
    def forward(self, x: Tensor):
        if bool((x < 0).any()):
            raise ValueError("negative input")
        return x * 2.0


class Scalar(torch.nn.Module):
    def forward(self, x: Tensor):
        return x.sum()


class Words(torch.nn.Module):
    def forward(self, x: Tensor):
        return ["word"]


class FixedBatch(torch.nn.Module):
    def forward(self, x: Tensor):
        return torch.zeros(2, 2)


class Constant(torch.nn.Module):
    def forward(self):
        return torch.ones(1, 2)


class Transposed(torch.nn.Module):
    def forward(self, x: Tensor):
        return torch.stack([x, x + 1], dim=0).permute(1, 2, 0)  # [B,2,2], strided


class IsInference(torch.nn.Module):
    def forward(self, x: Tensor):
        return torch.full_like(x, float((x + 1).is_inference()))


class Busy(torch.nn.Module):
    """Enough work for all the threads that it may have."""

    def forward(self, x: Tensor):
        return x + torch.ones(1 << 22).exp().mean()


class Heavy(torch.nn.Module):
    """As much work at every call: nothing of it is a constant."""

    def forward(self, x: Tensor):
        return x + (torch.ones(1 << 22) + 0 * x[0, 0]).exp().mean()


class Laborious(torch.nn.Module):
    """As many times a little work as its input says, and how many images came with it."""

    def forward(self, x: Tensor):
        y = torch.zeros_like(x) + x.shape[0]
        for _ in range(int(x.sum())):
            y = y + 0 * (torch.ones(1 << 20) + 0 * x[0, 0]).exp().mean()
        return y


def tensors(kind: str, names: list[str]) -> str:
    """`name` or `name:DTYPE`, each [B,2] unless its dims follow: `name:DTYPE:-1,2`."""
    entries = []
    for name in names:
        name, _, rest = name.partition(":")
        dtype, _, dims = (rest or "FP32").partition(":")
        entries.append(f'{{ name: "{name}" data_type: TYPE_{dtype} dims: [{dims or "2"}] }}')
    return f"{kind} [{', '.join(entries)}]\n"


def write(
    root: Path,
    name: str,
    module: torch.nn.Module | None,
    inputs: list[str],
    outputs: list[str],
    rest: str = "",
    batch: int = 8,
    filename: str = "model.pt",
    **parameters: str | None,
) -> None:
    """One model of the pytorch backend; `rest` is config.pbtxt text, `parameters` are the backend's (None: unnamed)."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    if module is not None:
        torch.jit.script(module).save(str(folder / filename))
    parameters = {"INTRA_OP_THREAD_COUNT": "1", **parameters}
    entries = "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in parameters.items()
        if value is not None
    )
    (root / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "pytorch"\nmax_batch_size: {batch}\ninstance_group [{{ kind: KIND_CPU count: 1 }}]\n'
        + tensors("input", inputs)
        + tensors("output", outputs)
        + entries
        + rest
    )
