"""The forward pass and its gradients beside float64's."""

import torch
import torch.nn.functional as F
from cases import EPS

NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


def random_arguments(case, dtype, device, layout=torch.contiguous_format, seed=0):
    """input, weight, bias, grad_output: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    image = (case.batch, case.channels, case.height, case.width)
    shapes = (image, (case.channels, 1, case.kernel_height, case.kernel_width), (case.channels,), image)
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [t.contiguous(memory_format=layout) if t.shape == image else t for t in made]


def run(convolve, input, weight, bias, grad):
    leaves = [t.detach().requires_grad_() for t in (input, weight, bias)]
    output = convolve(*leaves)
    return dict(zip(NAMES, (output.detach(), *torch.autograd.grad(output, leaves, grad)), strict=True))


def exact(input, weight, bias):
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return F.conv2d(input, weight, bias, padding=padding, groups=input.shape[1])


def shares_of_the_bound(answers, arguments):
    """The largest |error| / (4 (eps_float32 sum |x||w| + eps |answer|)) of each result."""
    wide = [t.double() for t in arguments]
    expected, sums = run(exact, *wide), run(exact, *(t.abs() for t in wide))
    eps = EPS[arguments[0].dtype]
    shares = {}
    for name, answer in answers.items():
        bound = 4 * (EPS[torch.float32] * sums[name] + eps * expected[name].abs()) + 1e-30
        error = (answer.double() - expected[name]).abs() / bound
        shares[name] = error.nan_to_num(nan=float("inf")).max().item()
    return shares
