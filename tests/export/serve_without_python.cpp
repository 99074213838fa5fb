// What the native LibTorch backend does with a model: loads it and runs it from several threads, with no Python.
// The operator's library comes by LD_PRELOAD, or as the last argument by dlopen.
//
//   serve_without_python MODEL PIXELS(uint8, [8,S,S,3]) SIDE THREADS [LIBRARY]  ->  logits as float32 on standard output
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <thread>

int main(int argc, char** argv) {
  if (argc > 5 && !dlopen(argv[5], RTLD_NOW)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::jit::Module model = torch::jit::load(argv[1]);
  std::ifstream file(argv[2], std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const int64_t side = std::stoll(argv[3]), batch = 8;
  const at::Tensor pixels = at::from_blob(bytes.data(), {batch, side, side, 3}, at::kByte);

  std::vector<at::Tensor> logits(std::stoul(argv[4]));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < logits.size(); ++i)
    threads.emplace_back([&, i] {
      const c10::InferenceMode guard;
      for (int64_t size : {1, 8, 3}) logits[i] = model.forward({pixels.narrow(0, 0, size)}).toTensor();
      logits[i] = model.forward({pixels}).toTensor().contiguous();
    });
  for (auto& thread : threads) thread.join();
  for (const auto& each : logits) std::fwrite(each.const_data_ptr(), 1, each.nbytes(), stdout);
}
