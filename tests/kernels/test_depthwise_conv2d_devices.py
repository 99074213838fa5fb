"""Forward and both gradients on each device: the CPU runs the same tests, so that a GPU finds no untried one."""

from contextlib import nullcontext

import pytest
import torch
from cases import CASES, Case
from gradient_cases import NAMES, exact, random_arguments, run, shares_of_the_bound

from kernels import depthwise_conv2d

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
TYPES = [  # half precision on a CPU is oneDNN's own affair
    pytest.param("cpu", torch.float32, id="cpu-float32"),
    *(
        pytest.param("cuda", dtype, marks=[pytest.mark.gpu, no_gpu], id=f"cuda-{str(dtype).removeprefix('torch.')}")
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("device", "dtype"), TYPES)
@pytest.mark.parametrize("case", [*CASES, Case(65, 16, 14, 14, 27, 27)], ids=str)
def test_within_the_bound_of_float64(case, device, dtype, layout):
    arguments = random_arguments(case, dtype, device, LAYOUTS[layout])
    answers = run(depthwise_conv2d, *arguments)
    shares = shares_of_the_bound(answers, arguments)
    assert max(shares.values()) <= 1, shares
    assert all(answer.dtype == dtype for answer in answers.values())
    assert answers["output"].stride() == torch.empty_like(arguments[0]).stride()


def test_the_bound_finds_an_error():
    arguments = random_arguments(CASES[2], torch.float32, "cpu")
    answers = run(depthwise_conv2d, *arguments)
    answers["grad_weight"][3, 0, 1, 1] += 1e-2
    shares = shares_of_the_bound(answers, arguments)
    assert shares["grad_weight"] > 1
    assert shares["grad_input"] <= 1


@pytest.mark.parametrize(("device", "dtype"), TYPES[1:])
@pytest.mark.parametrize("case", [Case(64, 32, 28, 28, 29, 29), Case(64, 64, 7, 7, 13, 13)], ids=str)
def test_no_worse_than_pytorch(case, device, dtype):
    """The error of each result, the root of its mean square, is at most 1.1 times that of PyTorch's convolution."""
    arguments = random_arguments(case, dtype, device)
    ours, theirs = run(depthwise_conv2d, *arguments), run(exact, *arguments)
    expected = run(exact, *(t.double() for t in arguments))
    for name in NAMES:
        errors = [(answers[name].double() - expected[name]).square().mean().sqrt().item() for answers in (ours, theirs)]
        assert errors[0] <= 1.1 * errors[1], (name, errors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [Case(2, 16, 9, 7, 31, 31), Case(3, 16, 30, 33, 13, 13), CASES[3]], ids=str)
def test_every_element_is_written(case, device, layout):
    """Memory that the allocator reuses is filled with NaN first."""
    arguments = random_arguments(case, torch.float32, device, LAYOUTS[layout])
    poison = [torch.full_like(t, float("nan")) for t in arguments for _ in range(8)]
    del poison
    answers = run(depthwise_conv2d, *arguments)
    assert not [name for name, answer in answers.items() if not answer.isfinite().all()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_local(device, layout, value):
    """A value in the corner of one channel reaches only the outputs (in the gradient, the inputs) that see it."""
    case = Case(3, 16, 20, 20, 13, 13)
    for which, name in ((0, "output"), (3, "grad_input")):
        arguments = random_arguments(case, torch.float32, device, LAYOUTS[layout])
        arguments[which][1, 3, 0, 19] = value
        bad = ~run(depthwise_conv2d, *arguments)[name].isfinite()
        assert bad[1, 3, :7, 13:].all()
        assert int(bad.sum()) == 49


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("device", "dtype"), TYPES)
@pytest.mark.parametrize("case", [Case(65, 8, 28, 28, 29, 29), Case(9, 64, 7, 7, 13, 13), CASES[4]], ids=str)
def test_bitwise_the_same(case, device, dtype, layout):
    arguments = random_arguments(case, dtype, device, LAYOUTS[layout])
    first = run(depthwise_conv2d, *arguments)
    for _ in range(3):
        again = run(depthwise_conv2d, *arguments)
        assert [name for name in NAMES if not torch.equal(first[name], again[name])] == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [5, 13])
def test_compiled_without_a_graph_break(device, kernel):
    """Inductor on a GPU; on a CPU, where it would start a C++ compiler, the steps before it."""
    arguments = random_arguments(Case(2, 16, 12, 12, kernel, kernel), torch.float32, device)

    def function(*a):
        return depthwise_conv2d(*a, "gelu") * 2

    compiled = torch.compile(function, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    expected, answers = run(function, *arguments), run(compiled, *arguments)
    for name in NAMES:
        torch.testing.assert_close(answers[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_trains_in_bfloat16(device):
    input, weight, bias, _ = random_arguments(Case(2, 16, 14, 14, 13, 13), torch.float32, device)
    leaves = [t.requires_grad_() for t in (input, weight, bias)]
    with torch.autocast(device, torch.bfloat16):
        output = depthwise_conv2d(*leaves)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert {t.grad.dtype for t in leaves} == {torch.float32}
    assert all(t.grad.isfinite().all() and t.grad.abs().max() > 0 for t in leaves)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [Case(4, 16, 14, 14, 27, 27), CASES[3]], ids=str)
def test_captured_with_both_gradients(case, device):
    """A CUDA graph of forward and backward answers for what its inputs hold at the replay; on a CPU a second call."""
    arguments = random_arguments(case, torch.float32, device)
    fresh = random_arguments(case, torch.float32, device, seed=1)
    expected = run(depthwise_conv2d, *fresh)
    if device == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run(depthwise_conv2d, *arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph) if device == "cuda" else nullcontext():
        answers = run(depthwise_conv2d, *arguments)
    for old, new in zip(arguments, fresh, strict=True):
        old.copy_(new)
    if device == "cuda":
        graph.replay()
        torch.cuda.synchronize()
    else:
        answers = run(depthwise_conv2d, *arguments)
    assert [name for name in NAMES if not torch.equal(answers[name], expected[name])] == []


@pytest.mark.gpu
@no_gpu
def test_on_another_stream_and_without_synchronisation():
    arguments = random_arguments(Case(4, 32, 28, 28, 29, 29), torch.bfloat16, "cuda")
    expected = run(depthwise_conv2d, *arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            answers = run(depthwise_conv2d, *arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert [name for name in NAMES if not torch.equal(answers[name], expected[name])] == []
