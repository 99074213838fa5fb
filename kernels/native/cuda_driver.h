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

// A device and the context to launch in: the calling thread's where it is of that device, else the primary one, which
// PyTorch's memory and streams are of: a thread that has not yet called the CUDA runtime has none, and PyTorch's cache
// hands out memory without a call.
struct Device {
  void* context;
  int architecture;
  // `ordinal` is PyTorch's number of the device. Throws std::runtime_error with the driver's words when a call fails.
  static Device get(int ordinal);
};

// Launches on `stream`, loading the cubin if the context has not yet: from any thread, and during a graph's capture.
// The thread's context is afterwards what it was. `parameters` are the kernel's run-time arguments. Throws as above.
void launch_cubin(const Device& device, const Cubin& cubin, unsigned grid_x, unsigned grid_y, void* stream,
                  void** parameters);

}  // namespace widefield
