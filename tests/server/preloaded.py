"""A small C++ program with server/backends/fixes preloaded, as tritonserver has it."""

import subprocess

from server.backends import build as backends


def compile_program(folder, source, *options):
    """`source`: C++. The program's path, in `folder`."""
    path, program = folder / "program.cpp", folder / "program"
    path.write_text(source)
    subprocess.run(["g++", "-std=c++20", "-pthread", str(path), *options, "-o", str(program)], check=True)
    return program


def output_of(program):
    env = {"LD_PRELOAD": str(backends.FIXES.output)}
    return subprocess.run([program], env=env, capture_output=True, text=True, check=True).stdout
