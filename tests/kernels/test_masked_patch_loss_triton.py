"""The loss's Triton-language kernels: interpreted, as machine code without a GPU, and run where there is one."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from device_stand_ins import BY_TIME, interpreted
from loss_cases import CASES, LossCase, make_loss_problem
from machine_code import ARCHITECTURES, NEW_TRITON

from kernels import masked_patch_loss

ROOT = Path(__file__).parents[2]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("dtypes", BY_TIME, ids="-".join)
def test_interpreted(dtypes):
    for lines in interpreted("interpreted_masked_patch_loss.py", dtypes).values():
        assert lines[-3:] == ["62 problems right", "18 combinations right", "28 paths right"]


def loss_source(channels_last, stride, patch, loss="l1", image_last=False, prediction="*bf16", cells=4608):
    """A prediction of 6 x 6 cells: (types, constants, integers that nothing is known to divide, warps)."""
    from kernels.masked_patch_loss import kernel, launch

    block_k, block_q, steps = launch.tile(3, stride, cells, channels_last)
    types = {name: "i32" for name in kernel.loss_kernel.arg_names}
    types |= {"prediction_ptr": prediction, "unscaled_grad_ptr": "*u8" if loss == "l1" else prediction}
    types |= {"target_ptr": "*fp32", "mask_ptr": "*fp32", "sum_ptr": "*fp32", "count_ptr": "*i32"}
    constants = {"C": 3, "h": 6, "w": 6, "S": stride, "P": patch, "CHANNELS_LAST": channels_last}
    constants |= {"LOSS": kernel.LOSSES[loss], "GRADIENT": True}
    constants |= {"BLOCK_K": block_k, "BLOCK_Q": block_q, "STEPS": steps, "mask_x": 1}
    constants |= {"target_c" if image_last else "target_x": 1}
    odd = {"mask_b", "mask_y"} | ({"target_x"} if image_last else set())
    return types, constants, odd, kernel.NUM_WARPS[channels_last and not image_last]


def sources():
    """name -> (kernel, types, constants, undivided, warps): SimMIM's recipe, and the widest of the others."""
    from kernels.masked_patch_loss import kernel as k
    from kernels.masked_patch_loss import kernel_backward as b
    from kernels.masked_patch_loss import kernel_normalize as n
    from kernels.masked_patch_loss.launch import backward_tile

    yield "l1_nchw", k.loss_kernel, *loss_source(False, 32, 32)
    yield "l1_nhwc", k.loss_kernel, *loss_source(True, 32, 32)
    yield "l1_nhwc_both", k.loss_kernel, *loss_source(True, 32, 32, image_last=True)
    yield "l1_nchw_fine_mask", k.loss_kernel, *loss_source(False, 32, 4)
    yield "l1_nhwc_fine_mask", k.loss_kernel, *loss_source(True, 32, 4)
    yield "smooth_l1_nchw", k.loss_kernel, *loss_source(False, 16, 16, "smooth_l1", prediction="*fp32")
    yield "smooth_l1_nhwc", k.loss_kernel, *loss_source(True, 16, 16, "smooth_l1", prediction="*fp32")
    types = {"count_ptr": "*i32", "sums": "i32", "counts": "i32", "C": "i32"}
    types |= {name: "*fp32" for name in ("sum_ptr", "loss_ptr", "scale_ptr")}
    yield "finish", k.finish_kernel, types, {"LOSS": 2, "BLOCK": 8192}, {"C", "sums", "counts"}, 32
    types = {
        "unscaled_grad_ptr": "*fp32",
        "grad_ptr": "*fp32",
        "size": "i64",
        "grad_loss_ptr": "*fp32",
        "scale_ptr": "*fp32",
    }
    yield "backward", b.backward_kernel, types, {"BLOCK": 1024}, set(), 4
    types |= {"unscaled_grad_ptr": "*u8", "grad_ptr": "*bf16", "outer": "i32", "inner": "i32", "size": "i32"}
    for name, inner in (("nchw", 768 * 36), ("nhwc", 768)):
        block_o, block_i = backward_tile(inner, 2)
        yield f"backward_{name}", b.backward_signs_kernel, types, {"BLOCK_O": block_o, "BLOCK_I": block_i}, set(), 4
    image = {
        "image_ptr": "*fp32",
        "target_ptr": "*fp32",
        "mask_ptr": "*fp32",
        "sum_ptr": "*fp64",
        "square_ptr": "*fp64",
    }
    image |= {name: "i32" for name in ("rows", "C", "H", "W", "mask_h", "mask_w", "R")}
    image |= {name: "i64" for name in ("stride_b", "stride_c", "stride_y", "stride_x")}
    odd = {"C", "R", "mask_h", "mask_w", "stride_x"}
    block = {"BLOCK_Y": n.PREFIX_TILE // 256, "BLOCK_X": 256}
    yield "window_prefix", n.prefix_kernel, image, block, odd, n.NUM_WARPS
    block = {"P": 32, "BLOCK_Y": n.ROWS, "BLOCK_X": n.COLUMNS}
    yield "window", n.window_kernel, image, block, odd, n.COLUMN_WARPS
    yield "patch", n.patch_kernel, image, {"P": 32, "BLOCK": 1024}, odd, n.NUM_WARPS


VECTORS = {  # bytes a thread: prediction, target; signs, gradient
    "l1_nchw": ("ld.global.v2.b32", "ld.global.v4.b32"),
    "l1_nhwc": ("ld.global.b32", "ld.global.v2.b32"),
    "backward_nchw": ("ld.global.v2.b32", "st.global.v4.b32"),
    "backward_nhwc": ("ld.global.v2.b32", "st.global.v4.b32"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_has_no_spill_and_fits(architecture, tmp_path):
    import triton
    import triton.backends.nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    cuobjdump = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    for name, kernel, types, constants, undivided, warps in sources():
        signature = {a: "constexpr" if a in constants else types[a] for a in kernel.arg_names}
        divided = [i for i, a in enumerate(kernel.arg_names) if a not in constants and a not in undivided]
        source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in divided})
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": warps})
        file = tmp_path / f"{name}.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [str(cuobjdump), "-res-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
        frame = 0 if NEW_TRITON else 8  # Triton 3.6 leaves an empty one on sm_120
        assert used["STACK"] <= frame, (name, text)
        assert used["LOCAL"] == 0, (name, text)
        # 80 for 8 warps: three programs on a multiprocessor
        most = 128 if any(word in name for word in ("fine", "smooth", "prefix")) else 80
        assert 0 < used["REG"] <= min(most, 65536 // (32 * warps)), (name, text)
        assert compiled.metadata.shared <= 48 * 1024
        for vector in VECTORS.get(name, ()):
            assert vector in compiled.asm["ptx"], f"{name}: no {vector}"
        assert "atom" not in compiled.asm["ptx"], f"{name}: the sum would depend on who comes first"


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*CASES, LossCase(33, 3, 6, 6, 32, 32), LossCase(5, 3, 7, 7, 32, 4)], ids=str)
def test_compiled_on_the_gpu(case, dtype, layout):
    for loss, norm in (("l1", "none"), ("smooth_l1", "none"), ("l2", "none"), ("l1", "window"), ("l2", "patch")):
        problem = make_loss_problem(case, dtype, loss, norm, grad_loss=64.0, device="cuda")
        answers = []
        for _ in range(2):
            prediction = problem.prediction.clone(memory_format=layout).requires_grad_()
            result = masked_patch_loss(prediction, problem.image, problem.mask, *problem.settings)
            (result * 64).backward()
            problem.check(result.detach(), prediction.grad)
            answers.append((result.detach(), prediction.grad))
        assert torch.equal(answers[0][0], answers[1][0])
        assert torch.equal(answers[0][1], answers[1][1])


@gpu
@pytest.mark.gpu
def test_no_synchronisation_and_captured_in_a_graph():
    problem = make_loss_problem(CASES[0])
    prediction, image, mask = (t.cuda() for t in (problem.prediction, problem.image, problem.mask))
    masked_patch_loss(prediction.requires_grad_(), image, mask).backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        masked_patch_loss(prediction, image, mask).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = masked_patch_loss(prediction.detach(), image, mask)
    graph.replay()
    problem.check(loss, None)


@pytest.mark.parametrize(
    ("batch", "side", "dtype", "served"),
    [
        (2**19 - 1, 1024, torch.float32, True),  # images are counted in 64 bits, their cells in 32
        (2**19, 1024, torch.float32, False),
        (1, 13376, torch.bfloat16, True),  # and the pixels of one: the backward pass counts up to four times as many
        (1, 13408, torch.bfloat16, False),
        (1, 32, torch.float64, False),
    ],
)
def test_what_the_kernels_cannot_count_is_left_to_pytorch(batch, side, dtype, served):
    from kernels.masked_patch_loss.op import _has_kernels

    image = torch.empty(batch, 3, side, side, dtype=dtype, device="meta")
    prediction = torch.empty(batch, 3072, side // 32, side // 32, device="meta")
    assert _has_kernels(prediction, image, torch.empty(batch, 1, 1, device="meta")) is served


def test_a_crop_takes_the_places_of_the_picture_that_it_lies_in():
    from kernels.masked_patch_loss.op import _has_kernels

    prediction = torch.empty(1, 3072, 2, 2, device="meta")
    image, mask = torch.empty(1, 3, 64, 64, device="meta"), torch.empty(1, 2, 2, device="meta")
    crop = torch.empty(1, 3, 32768, 32768, device="meta")[..., :64, :64]
    strided = torch.empty(1, 2**15, 2**15, device="meta")[:, :: 2**14, :: 2**14]
    assert _has_kernels(prediction, image, mask)
    assert not _has_kernels(prediction, crop, mask)
    assert not _has_kernels(prediction, image, strided)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_a_fake_gpu_answers_with_the_kernels_shapes(loss, layout):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        prediction = torch.empty(2, 50, 3, 2, dtype=torch.bfloat16, device="cuda", memory_format=layout)
        image, mask = torch.empty(2, 2, 15, 10, device="cuda"), torch.empty(2, 3, 2, device="cuda")
        total, unscaled_grad, scale = torch.ops.widefield.masked_patch_loss(prediction, image, mask, loss)
        assert (total.shape, total.dtype, scale.shape) == ((), torch.float32, ())
        assert (unscaled_grad.shape[1], unscaled_grad.dtype) == (
            (15, torch.uint8) if loss == "l1" else (50, torch.bfloat16)
        )
        assert unscaled_grad.is_contiguous(memory_format=layout)
        backward = torch.ops.widefield.masked_patch_loss_backward
        grad = backward(total, unscaled_grad, scale, torch.bfloat16, 50)
        assert (grad.shape, grad.stride(), grad.dtype) == (prediction.shape, prediction.stride(), torch.bfloat16)
