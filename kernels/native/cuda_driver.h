// The CUDA driver, found at run time: no CUDA is needed to build.
#pragma once

namespace widefield {

// One compiled kernel; it lies in the library's read-only data.
struct Cubin {
  int architecture;  // compute capability, major * 10 + minor
  const unsigned char* image;
  const char* name;
  unsigned shared_bytes;
  unsigned warps;
};

// The calling thread's device. Throws std::runtime_error with the driver's words when a call fails.
struct CurrentDevice {
  void* context;
  int architecture;
  static CurrentDevice get();
};

// Launches on `stream`, loading the cubin if the context has not yet: from any thread, and during a graph's capture.
// `parameters` are the kernel's run-time arguments. Throws as above.
void launch_cubin(const CurrentDevice& device, const Cubin& cubin, unsigned grid_x, unsigned grid_y, void* stream,
                  void** parameters);

}  // namespace widefield
