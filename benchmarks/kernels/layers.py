"""The layers that are measured, and the least work of each: valid taps, bytes, the machine's limit."""

from dataclasses import dataclass, replace

import torch

BLOCKS = (2, 2, 18, 2)  # depthwise layers of RepLKNet-31B by stage
PASSES = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Ceilings:
    """The machine's peaks, measured in the same run: bytes/s of a copy, FLOP/s of a matrix product by dtype."""

    bandwidth: float
    peak: dict[str, float]


@dataclass(frozen=True)
class Layer:
    """[batch,channels,size,size] convolved with [channels,1,kernel,kernel], stride 1, "same" zero padding."""

    batch: int
    channels: int
    size: int
    kernel: int
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return f"N {self.batch:3} C {self.channels:4} H {self.size:3} K {self.kernel:2} {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def macs(self) -> int:
        """Multiply-adds on valid taps, N C (sum_y t(y))^2: t(y) of the K taps of output row y lie inside the image.

        All three passes have as many: each pair of an output and a tap inside the image is one product.
        """
        return self.batch * self.channels * valid_taps(self.size, self.kernel) ** 2

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def input_bytes(self) -> int:
        return self.batch * self.channels * self.size**2 * self.torch_dtype.itemsize

    @property
    def bytes(self) -> int:
        """Least traffic of a pass: two images and a filter, each read or written once."""
        return 2 * self.input_bytes + self.channels * self.kernel**2 * self.torch_dtype.itemsize

    def limit_ms(self, ceilings: Ceilings) -> float:
        """max(bytes / bandwidth, FLOPs on valid taps / peak): the roofline's lower limit."""
        return 1000 * max(self.bytes / ceilings.bandwidth, self.flops / ceilings.peak[self.dtype])


def valid_taps(size: int, kernel: int) -> int:
    """Taps inside the image along one side, summed over its pixels."""
    return sum(min(size, x + kernel // 2 + 1) - max(0, x - kernel // 2) for x in range(size))


def replknet_31b(batch: int, dtype: str = "bfloat16") -> list[Layer]:
    """The K x K layer of each stage at 224 px."""
    sizes = ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13))
    return [Layer(batch, *size, dtype) for size in sizes]


def small_kernels(batch: int, dtype: str) -> list[Layer]:
    """The 5 x 5 layer beside each of them."""
    return [replace(layer, kernel=5) for layer in replknet_31b(batch, dtype)]


def sweep() -> list[Layer]:
    """The other layers that are measured on a GPU, most important first: the time may not be enough for all."""
    layers = replknet_31b(1)
    layers += replknet_31b(64, "float16") + replknet_31b(64, "float32")
    layers += small_kernels(64, "bfloat16")
    layers += [Layer(64, 256, 28, kernel) for kernel in (3, 5, 7, 9, 11, 13, 17, 21, 25, 31, 37, 43, 51)]
    layers += [Layer(64, 128, size, 31) for size in (7, 14, 28, 112)] + [Layer(64, 256, size, 13) for size in (14, 57)]
    layers += [layer for batch in (256, 8, 2, 4, 16, 32, 128) for layer in replknet_31b(batch)]
    layers += [Layer(64, channels, 28, 29) for channels in (16, 48, 100, 512, 1024)]
    layers += replknet_31b(1, "float16") + replknet_31b(1, "float32")
    return list(dict.fromkeys(layers))
