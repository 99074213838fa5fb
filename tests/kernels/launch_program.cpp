// Launches what stdin asks for as ops.cpp does, without libtorch; a line of numbers each:
//   dtype channels_last batch channels height width kernel_height kernel_width activation has_bias input output stream
// The first argument is the number of threads that each do all of it, half of them in a second context.
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

const char* serve(const std::string& line) {
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
  if (const auto plan = plan_toeplitz(a, type)) {
    launch_toeplitz(*plan, a, reinterpret_cast<void*>(plan->packed_elements), on);  // an address that tells its size
    return "toeplitz";
  }
  if (launch_simple(a, type, channels_last, on)) return "simple";
  warn_no_kernel();
  return "pytorch";
}

int main(int, char** arguments) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(std::cin, line);) lines.push_back(line);
  std::vector<std::thread> threads;
  for (int t = 0; t < std::stoi(arguments[1]); ++t) {
    threads.emplace_back([t, &lines] {
      if (t % 2) {
        void* driver = dlopen("libcuda.so.1", RTLD_NOW);
        reinterpret_cast<void (*)(int)>(dlsym(driver, "fake_set_context"))(2);
      }
      for (const std::string& line : lines) {
        try {
          std::printf("%s\n", serve(line));
        } catch (const std::exception& error) {
          std::printf("%s\n", error.what());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}
