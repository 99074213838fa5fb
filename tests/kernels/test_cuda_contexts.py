"""Threads, contexts and failures of the library's launches."""

from collections import Counter
from dataclasses import replace

import pytest
from launch_stand_in import STAGES


def test_threads_load_each_module_once_a_context(run_launches):
    """The thread's capture mode is relaxed, so that a graph's capture is not broken, and restored afterwards."""
    result = run_launches([*STAGES.values()] * 20, contexts=(1, 2) * 4)
    assert len(result.answers) == 8 * 80
    assert set(result.answers) == {"toeplitz", "whole image"}
    loads = Counter(tuple(words[1:]) for words in result.log if words[0] == "load")
    assert set(loads.values()) == {1}
    assert len(loads) == 2 * (1 + 4)  # contexts x (packing and a kernel for each stage)
    assert {words[2] for words in loads} == {"1", "2"}
    assert {words[4] for words in loads} == {"2"}
    assert len(result.launches()) == 8 * 20 * (2 + 2 + 1 + 1)


@pytest.mark.parametrize("device", [0, 1])
def test_a_thread_without_a_context_launches_in_its_device_s_primary_one(run_launches, device):
    """So do PyTorch's threads that have only used cached memory yet, and threads in another device's context."""
    others = 11 - 10 * device  # a context of the other device
    result = run_launches([*STAGES.values()] * 5, contexts=(0, others) * 4, device=device)
    assert len(result.answers) == 8 * 20
    assert set(result.answers) == {"toeplitz", "whole image"}  # and every thread's context is what it was
    primary = str(10 * device + 9)
    assert {numbers[8] for _, numbers, _ in result.launches()} == {int(primary)}
    assert {words[3] for words in result.log if words[0] == "load"} == {primary}
    assert [words for words in result.log if words[0] == "retain"] == [["retain", str(device), "mode", "2"]]


def test_a_thread_s_own_context_of_the_device_is_kept(run_launches):
    result = run_launches([STAGES["stage1"]], contexts=(13,), device=1)
    assert [numbers[8] for _, numbers, _ in result.launches()] == [13, 13]
    assert not [words for words in result.log if words[0] == "retain"]


def test_large_shared_memory_is_asked_for_once(run_launches):
    result = run_launches([STAGES["stage1"]] * 2)
    name = str(result.launches()[1][0])
    assert [words for words in result.log if words[0] == "attribute"] == [["attribute", name, "8", "65552"]]
    assert result.launches()[1][1][6] == 65552
    small = run_launches([replace(STAGES["stage1"], batch=1)])
    assert not [words for words in small.log if words[0] == "attribute"]


CALLS = ["cuDeviceGet", "cuCtxGetCurrent", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuModuleLoadData"]


@pytest.mark.parametrize("call", [*CALLS, "cuFuncSetAttribute", "cuLaunchKernel"])
def test_a_failing_call_is_named(run_launches, call):
    message = f"widefield: {call} failed: an illegal memory access was encountered"
    assert run_launches([STAGES["stage1"]] * 2, contexts=(0,), fail=call).answers == [message] * 2


@pytest.mark.parametrize("call", ["cuModuleGetFunction", "cuFuncSetAttribute"])
def test_a_module_that_cannot_be_used_is_unloaded(run_launches, call):
    result = run_launches([STAGES["stage1"]] * 2, fail=call)
    assert result.answers == [f"widefield: {call} failed: an illegal memory access was encountered"] * 2
    modules = {event: [words[1] for words in result.log if words[0] == event] for event in ("load", "unload")}
    used = {words[1] for words in result.log if words[0] == "launch"}
    assert modules["unload"] == [name for name in modules["load"] if name not in used]
    assert len(modules["unload"]) == 2


def test_a_missing_driver_is_named(run_launches):
    answer = "widefield: libcuda.so.1 was not found: is the NVIDIA driver installed?"
    assert run_launches([STAGES["stage1"]], driver=False).answers == [answer]
