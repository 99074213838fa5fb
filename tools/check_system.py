"""Names each missing system requirement in one line, with the command that installs it. Exit status 1 if any is missing."""

import ctypes
import os
import platform
import shutil
import sys
import sysconfig

VERSION = "%d.%d" % sys.version_info[:2]  # (this file must run on any Python to say which one is needed)


def loads_shared_libpython():
    name = "libpython%s.so.1.0" % VERSION
    for candidate in (os.path.join(sysconfig.get_config_var("LIBDIR") or "", name), name):
        try:
            ctypes.CDLL(candidate)
            return True
        except OSError:
            pass
    return False


def missing_requirements():
    if sys.platform != "linux" or platform.machine() != "x86_64":
        yield "Widefield runs on Linux x86-64; this is %s %s." % (sys.platform, platform.machine())
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        yield "Python %s: 3.10 to 3.12 are supported. Name one: make PYTHON=python3.11 (apt-get install python3.11)" % (
            VERSION
        )
        return
    if shutil.which("g++") is None:
        yield "g++ is missing (it builds the native library): sudo apt-get install g++"
    if not loads_shared_libpython():
        yield "libpython%s.so.1.0 is missing (tritonserver's Python backend loads it): sudo apt-get install libpython%s" % (
            VERSION,
            VERSION,
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        yield "Python's venv module is missing: sudo apt-get install python%s-venv" % VERSION


if __name__ == "__main__":
    problems = list(missing_requirements())
    for problem in problems:
        print("widefield: " + problem, file=sys.stderr)
    sys.exit(1 if problems else 0)
