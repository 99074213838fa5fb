"""The loss's Triton-language kernels: interpreted, as machine code without a GPU, and run where there is one."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from device_stand_ins import BY_TIME, interpreted
from loss_cases import CASES, LossCase, make_loss_problem
from machine_code import NEW_TRITON

from kernels import masked_patch_loss
from kernels.native.variants import SIMPLE_ARCHITECTURES

ROOT = Path(__file__).parents[2]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("dtypes", BY_TIME, ids="-".join)
def test_interpreted(dtypes):
    for lines in interpreted("interpreted_masked_patch_loss.py", dtypes).values():
        assert lines[-2:] == ["62 problems right", "18 combinations right"]


def sources():
    """name -> (kernel, types of its arguments, constants): SimMIM's recipe, and the widest of the others."""
    from kernels.masked_patch_loss import kernel as k
    from kernels.masked_patch_loss import kernel_normalize as n

    strides = {
        name: "i64" for name in ("stride_b", "stride_k", "stride_q", "target_b", "target_c", "target_y", "target_x")
    }
    sizes = {name: "i32" for name in ("K", "cells", "h", "w", "mask_h", "mask_w")}
    loss = {"mask_ptr": "*u8", "sum_ptr": "*fp32", "count_ptr": "*i32"} | strides | sizes
    block = {"BLOCK_K": 32, "BLOCK_Q": 64, "GRADIENT": True}
    simmim = loss | {"prediction_ptr": "*bf16", "target_ptr": "*fp32", "direction_ptr": "*i8"}
    wide = loss | {name: "*fp32" for name in ("prediction_ptr", "target_ptr", "direction_ptr")}
    yield "l1", k.loss_kernel, simmim, block | {"S": 32, "P": 4, "LOSS": 0}
    yield "smooth_l1", k.loss_kernel, wide, block | {"S": 16, "P": 16, "LOSS": 1}
    scalars = {name: "*fp32" for name in ("sum_ptr", "loss_ptr", "scale_ptr")}
    yield "finish", k.finish_kernel, {**scalars, "count_ptr": "*i32", "programs": "i32", "C": "i32"}, {"BLOCK": 1024}
    backward = {
        "direction_ptr": "*i8",
        "grad_loss_ptr": "*fp32",
        "scale_ptr": "*fp32",
        "grad_ptr": "*bf16",
        "size": "i64",
    }
    yield "backward", k.backward_kernel, backward, {"BLOCK": 1024}
    pointers = {name: "*fp32" for name in ("image_ptr", "mean_ptr", "square_ptr", "target_ptr")}
    integers = {name: "i32" for name in ("C", "H", "W", "mask_h", "mask_w", "R")}
    image = pointers | integers | {name: "i64" for name in ("stride_b", "stride_c", "stride_y", "stride_x")}
    yield "window_rows", n.window_rows_kernel, image, {"BLOCK": n.ROW}
    yield "window_columns", n.window_columns_kernel, image | {"mask_ptr": "*u8"}, {"P": 32, "BLOCK": n.ROW}
    yield "patch", n.patch_kernel, image | {"mask_ptr": "*u8"}, {"P": 32, "BLOCK": 1024}


@pytest.mark.parametrize("architecture", SIMPLE_ARCHITECTURES)
def test_machine_code_has_no_spill_and_fits(architecture, tmp_path):
    import triton
    import triton.backends.nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    cuobjdump = Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump"
    for name, kernel, types, constants in sources():
        signature = {a: "constexpr" if a in constants else types[a] for a in kernel.arg_names}
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 4})
        file = tmp_path / f"{name}.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [str(cuobjdump), "-res-usage", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
        assert used["STACK"] == used["LOCAL"] == 0, (name, text)
        # Four blocks of 128 threads on a multiprocessor; Triton 3.6 fits two.
        assert 0 < used["REG"] <= (128 if NEW_TRITON else 255), (name, text)
        assert compiled.metadata.shared <= 48 * 1024
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
