// Launches what stdin asks for as ops_cuda.cpp does, without libtorch; a line of numbers each:
//   dtype channels_last batch channels height width kernel_height kernel_width activation has_bias input output stream
// The first argument is the device, each further one the context of a thread that does all of it (0: none).
#include <dlfcn.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cuda_launch.h"

using namespace widefield;

template <class Function>
Function driver(const char* name) {
  return reinterpret_cast<Function>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), name));
}

const char* serve(const std::string& line, int ordinal) {
  std::istringstream in(line);
  int dtype, channels_last, has_bias;
  intptr_t input, output, stream;
  KernelArguments a{};
  in >> dtype >> channels_last >> a.batch >> a.channels >> a.height >> a.width >> a.kernel_height >> a.kernel_width >>
      a.activation >> has_bias >> input >> output >> stream;
  a.input = reinterpret_cast<void*>(input);
  a.output = reinterpret_cast<void*>(output);
  a.weight = reinterpret_cast<void*>(3001);
  a.bias = has_bias ? reinterpret_cast<void*>(4001) : nullptr;
  for (int i = 0; i < 4; ++i) a.strides[i] = 101 + i;
  const auto type = static_cast<DataType>(dtype);
  void* on = reinterpret_cast<void*>(stream);
  const Device device = Device::get(ordinal);
  if (const auto plan = plan_tensor_cores(device, a, type)) {
    launch_tensor_cores(*plan, a, reinterpret_cast<void*>(plan->packed_elements), on);  // an address that tells its size
    return plan->whole_image ? "whole image" : "toeplitz";
  }
  if (launch_taps(device, a, type, channels_last, on)) return "taps";
  warn_no_kernel();
  return "pytorch";
}

int main(int count, char** arguments) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(std::cin, line);) lines.push_back(line);
  std::vector<std::thread> threads;
  for (int t = 2; t < count; ++t) {
    threads.emplace_back([context = std::stol(arguments[t]), device = std::stoi(arguments[1]), &lines] {
      const auto push = driver<int (*)(void*)>("cuCtxPushCurrent_v2");
      const auto current = driver<int (*)(void**)>("cuCtxGetCurrent");
      if (push && context) push(reinterpret_cast<void*>(context));
      for (const std::string& line : lines) {
        try {
          std::printf("%s\n", serve(line, device));
        } catch (const std::exception& error) {
          std::printf("%s\n", error.what());
        }
      }
      void* left = reinterpret_cast<void*>(context);
      if (current) current(&left);
      if (left != reinterpret_cast<void*>(context)) std::printf("the thread's context was changed\n");
    });
  }
  for (std::thread& thread : threads) thread.join();
}
