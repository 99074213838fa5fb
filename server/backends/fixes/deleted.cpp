// Preloaded into tritonserver: memory to which it still writes after it has deleted it is kept for a while.
//
// It unlocks two kinds of mutex in deleted memory: that of a ModelInfo, if a load is held up (unload.cpp), and that of
// the batcher's Payload (README.md). Both are known by their size.
#include <link.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace {

constexpr std::size_t kModelInfo = 792;  // bytes in tritonserver 2.51, which deletes nothing else of this size
constexpr std::size_t kMutex = 40;       // of which it deletes other things too, some thousand a second

template <std::size_t count>
struct Kept {
  // Returns what is to be freed instead: the block that was kept the longest, or none.
  void* exchange(void* block) { return blocks[next++ % count].exchange(block); }
  std::atomic<void*> blocks[count];
  std::atomic<std::size_t> next;
};
Kept<1024> infos;     // 0.8 MB
Kept<65536> mutexes;  // 3.7 MB

struct Code {
  std::uintptr_t begin = 0, end = 0;
};

Code code_of_tritonserver() {
  Code code;
  dl_iterate_phdr(
      [](dl_phdr_info* library, std::size_t, void* found) {
        if (!std::strstr(library->dlpi_name, "libtritonserver")) return 0;
        for (int i = 0; i < library->dlpi_phnum; ++i) {
          const auto& part = library->dlpi_phdr[i];
          if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
          const auto begin = library->dlpi_addr + part.p_vaddr;
          *static_cast<Code*>(found) = {begin, begin + part.p_memsz};
        }
        return 1;
      },
      &code);
  return code;
}

bool is_tritonservers(const void* caller) {
  static const Code code = code_of_tritonserver();
  const auto place = reinterpret_cast<std::uintptr_t>(caller);
  return code.begin <= place && place < code.end;
}

}  // namespace

__attribute__((visibility("default"))) void operator delete(void* memory, std::size_t size) noexcept {
  if ((size == kMutex || size == kModelInfo) && is_tritonservers(__builtin_return_address(0)))
    memory = size == kMutex ? mutexes.exchange(memory) : infos.exchange(memory);
  ::operator delete(memory);
}
