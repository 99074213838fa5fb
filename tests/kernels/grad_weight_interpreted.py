"""Run by test_grad_weight.py under TRITON_INTERPRET=1: the filter's gradient without a GPU."""

import sys

import torch
import torch.nn.functional as F
from cases import EPS, Case

from kernels.depthwise_conv2d.grad_weight import candidates, launch

CASES = [
    Case(2, 2, 14, 14, 27, 27),  # RepLKNet's stages: the third
    Case(1, 2, 7, 7, 13, 13),  # the fourth
    Case(3, 1, 6, 28, 29, 29),  # the second, with K > 2H
    Case(2, 1, 10, 40, 31, 31),  # the first: windows of 48 in two parts
    Case(1, 1, 5, 37, 51, 51),
    Case(1, 1, 30, 29, 51, 51),
    Case(2, 2, 5, 4, 9, 9),  # K > H
    Case(65, 1, 3, 5, 3, 3),
    Case(1, 1, 33, 3, 7, 1),  # strips
    Case(1, 1, 4, 33, 5, 31),
    Case(2, 1, 20, 6, 31, 5),
    Case(1, 3, 1, 1, 3, 3),
    Case(9, 1, 32, 32, 5, 5),  # several programs a channel
]


def reference(grad, input, kernel_size):
    """grad_weight[c,0,i,j] = sum_{n,y,x} grad[n,c,y,x] * input[n,c,y+i-Kh//2,x+j-Kw//2], tap by tap."""
    kernel_height, kernel_width = kernel_size
    height, width = input.shape[2:]
    pad_y, pad_x = kernel_height // 2, kernel_width // 2
    padded, real = (F.pad(tensor, (pad_x, pad_x, pad_y, pad_y)) for tensor in (input, torch.ones_like(input)))
    result = input.new_empty(input.shape[1], 1, kernel_height, kernel_width)
    for i in range(kernel_height):
        for j in range(kernel_width):
            # The window's zeros are no pairs of the sum: a NaN of the gradient does not meet them.
            seen = (slice(None), slice(None), slice(i, i + height), slice(j, j + width))
            product = torch.where(real[seen] > 0, grad * padded[seen], 0)
            result[:, 0, i, j] = product.sum((0, 2, 3))
    return result


def random(case, dtype):
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.channels, case.height, case.width)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def check(case, grad, input, tile=None):
    """Into a poisoned output, against float64 within 4 eps sum |dy||x|; twice, to the same bits."""
    size = (case.kernel_height, case.kernel_width)
    outputs = [torch.full((case.channels, 1, *size), 12345.0, dtype=input.dtype) for _ in range(2)]
    for output in outputs:
        launch(grad, input, output, tile=tile)
    expected = reference(grad.double(), input.double(), size)
    sums = reference(grad.double().abs(), input.double().abs(), size)
    bound = 4 * (EPS[torch.float32] * sums + EPS[input.dtype] * expected.abs()) + 1e-30
    finite = expected.isfinite()
    output = outputs[0].double()
    assert torch.equal(outputs[0].nan_to_num(), outputs[1].nan_to_num())
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.isinf(), expected.isinf())
    assert bool(((output - expected).abs()[finite] <= bound[finite]).all()), str(case)
    return expected


def every_case(dtype):
    for case in CASES:
        check(case, *random(case, dtype))
        yield


def every_tile(dtype):
    """All that a tuner may choose for a shape with sides that no step divides."""
    case = Case(2, 1, 9, 11, 7, 9)
    for _, tile in candidates(9, 11, 7, 9, dtype.itemsize):
        check(case, *random(case, dtype), tile)
        yield


def what_is_not_finite(dtype):
    """A NaN or an infinity reaches the taps that see it, and no other."""
    case = Case(2, 1, 6, 20, 3, 5)
    for of_input in (False, True):
        for value, y, x in ((float("nan"), 0, 0), (float("inf"), 5, 19), (float("inf"), 0, 8)):
            tensors = random(case, dtype)
            tensors[of_input][1, 0, y, x] = value
            expected = check(case, *tensors)
            # The input's border is not seen by every tap; a pixel of the gradient misses those beyond the image.
            assert 0 < int(expected.isfinite().sum()) < 15
            yield


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    for part in (every_case, every_tile, what_is_not_finite):
        print(part.__name__, sum(1 for _ in part(dtype)))


if __name__ == "__main__":
    main()
