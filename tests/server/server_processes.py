"""The processes of a running server, and that nothing is left of them."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import psutil


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.05)


def processes_of(pid):
    """Guard, tritonserver, backend processes."""
    return psutil.Process(pid).children(recursive=True)


def command_of(process):
    """Empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie too
        return ""


def commands_of(processes):
    return " ".join(command_of(each) for each in processes)


def backends_of(server):
    """The processes of the server's Python models; several servers may run under this process."""
    children = [(each, command_of(each)) for each in processes_of(os.getpid())]
    folder = str(server.launch.runtime.folder)
    return [each for each, command in children if "triton_python_backend_stub" in command and folder in command]


def shm_of(prefix):
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def folder_of(processes):
    """The private folder of a server, as its backends' command line tells it."""
    text = commands_of(processes)
    start = text.index("/widefield-")
    return Path(text[: text.index("/", start + 1)].split("=")[-1].split(" ")[-1])


@contextmanager
def nothing_left_of(process):
    """What a running `python -m server` has started, and its private folder; at the end they are gone."""
    processes = processes_of(process.pid)
    folder = folder_of(processes)
    yield processes, folder
    assert_nothing_left(processes, folder)


def assert_nothing_left(processes, folder):
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in processes), 20, "processes")
    wait_until(lambda: not folder.exists(), 5, "the private folder")
    assert not shm_of(folder.name)
