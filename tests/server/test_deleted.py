"""What tritonserver writes to after it has deleted it is not given to others meanwhile."""

import subprocess

from preloaded import compile_program, output_of

# As the batcher's thread replaces a payload whose mutex it holds.
UNLOCKED_LATE = r"""
#include <mutex>

template <typename Lockable>
static bool is_reused() {
  auto* deleted = new Lockable;
  deleted->lock();
  delete deleted;
  deleted->unlock();
  for (int i = 0; i < 1000; ++i)
    if (new Lockable == deleted) return true;
  return false;
}

struct Larger : std::mutex { char more[8]; };
"""
LIBRARY = UNLOCKED_LATE + 'extern "C" bool mutex() { return is_reused<std::mutex>(); }'
LIBRARY += 'extern "C" bool larger() { return is_reused<Larger>(); }'
PROGRAM = (
    UNLOCKED_LATE
    + r"""
#include <cstdio>
extern "C" bool mutex();
extern "C" bool larger();
int main() { std::printf("%d %d %d\n", mutex(), larger(), is_reused<std::mutex>()); }
"""
)


def test_a_deleted_mutex_of_tritonservers_is_kept(tmp_path):
    """Of its size, and of its library only: all else is freed at once."""
    source, library = tmp_path / "library.cpp", tmp_path / "libtritonserver-1.so"
    source.write_text(LIBRARY)
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", "-w", str(source), "-o", str(library)], check=True)
    assert output_of(compile_program(tmp_path, PROGRAM, "-w", str(library))).split() == ["0", "1", "1"]
