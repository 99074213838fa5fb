// The CUDA driver, loaded at run time: building needs no CUDA.
#pragma once

namespace widefield {

// One compiled kernel, in the library's read-only data.
struct Cubin {
  int architecture;  // compute capability, major * 10 + minor
  const unsigned char* image;
  const char* name;
  unsigned shared_bytes;
  unsigned warps;
};

// A device and the context to launch in: the calling thread's if it belongs to that device, else the device's primary
// context, to which PyTorch's memory and streams belong. A thread that has not yet called the CUDA runtime has no
// context, and PyTorch's cache may give it memory without such a call.
struct Device {
  void* context;
  int architecture;
  // `ordinal` is PyTorch's number of the device. Throws std::runtime_error with the driver's message if a call fails.
  static Device get(int ordinal);
};

// Launches on `stream`, from any thread and also while a graph is captured; loads the cubin if the context has not yet.
// Restores the thread's context. `parameters` are the kernel's run-time arguments. Throws as above.
void launch_cubin(const Device& device, const Cubin& cubin, unsigned grid_x, unsigned grid_y, void* stream,
                  void** parameters);

}  // namespace widefield
