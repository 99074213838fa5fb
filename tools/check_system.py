"""Names each missing system requirement in one line, with the command that installs it; exit status 1 if any is.

The Python that runs it may be too old for the rest, so it is written for any Python 3.6 or newer to read.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def compiler_problem() -> str:
    """Why the native libraries would not compile; empty if they would. The builds choose their compiler likewise."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        return "g++ is missing (it builds the native libraries): sudo apt-get install g++"
    command = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return f"CXX is {compiler}, which cannot be run ({error.strerror}): unset it or name one compiler: make CXX=g++"
    if done.returncode == 0:
        return ""
    said = done.stdout.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    return f"{compiler} does not compile C++20 ({said[0]}): sudo apt-get install g++-12, then name it: make CXX=g++-12"


def loads_shared_libpython() -> bool:
    name = f"libpython{VERSION}.so.1.0"
    for candidate in (os.path.join(sysconfig.get_config_var("LIBDIR") or "", name), name):
        try:
            ctypes.CDLL(candidate)
            return True
        except OSError:
            pass
    return False


def missing_requirements() -> "Iterator[str]":  # in quotes: Python 3.8 cannot evaluate it
    if sys.platform != "linux" or platform.machine() != "x86_64":
        yield f"Widefield runs on Linux x86-64; this is {sys.platform} {platform.machine()}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        yield f"Python {VERSION}: 3.10 to 3.14 are supported; name one: make PYTHON=python3.11"
        return
    problem = compiler_problem()
    if problem:
        yield problem
    if not loads_shared_libpython():
        package = f"libpython{VERSION}"
        yield f"{package}.so.1.0 is missing (tritonserver's Python backend loads it): sudo apt-get install {package}"
    if importlib.util.find_spec("ensurepip") is None:
        yield f"Python's venv module is missing: sudo apt-get install python{VERSION}-venv"


if __name__ == "__main__":
    problems = list(missing_requirements())
    for problem in problems:
        print(f"widefield: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)
