// An instance's TorchScript model; inputs and outputs are in the config's order.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "settings.h"

namespace widefield {

// Loads a version's weights. With ENABLE_WEIGHT_SHARING, the instances on a device share one module.
class ModuleLoader {
 public:
  ModuleLoader(const Settings& settings, std::string path) : settings_(settings), path_(std::move(path)) {}
  std::shared_ptr<torch::jit::Module> load(at::Device device);
  std::shared_ptr<torch::jit::Module> read(at::Device device) const;  // a new module
  const std::string& path() const { return path_; }

 private:
  const Settings& settings_;
  const std::string path_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<torch::jit::Module>> shared_;
};

class TorchModel {
 public:
  // `sizes`: the sizes of the pieces into which oneDNN fusion splits a batch, largest first.
  TorchModel(
      const Settings& settings,
      ModuleLoader& loader,
      std::shared_ptr<torch::jit::Module> module,
      at::Device device,
      std::vector<int64_t> sizes);

  // Throws what forward() throws, and `std::invalid_argument` if its results do not fit the config.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

  bool is_fused() const { return fused_; }
  bool is_warm(const std::vector<at::Tensor>& inputs) const;  // has run such a batch often enough

 private:
  int64_t batch_of(const std::vector<at::Tensor>& inputs) const;  // 0 without a batch dimension
  std::vector<int64_t> pieces(int64_t batch) const;
  std::vector<at::Tensor> run_piece(const std::vector<at::Tensor>& inputs);
  c10::IValue forward(std::vector<c10::IValue> arguments, int64_t batch);
  void check(const std::vector<at::Tensor>& outputs, int64_t batch) const;

  const Settings& settings_;
  ModuleLoader& loader_;
  const at::Device device_;
  const std::vector<int64_t> sizes_;
  bool fused_;
  std::shared_ptr<torch::jit::Module> module_, unfused_;
  std::vector<size_t> input_positions_, output_positions_;
  std::map<int64_t, int> runs_;  // batch size (at most max_batch_size) -> runs
};

}  // namespace widefield
