#include "model.h"

#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/jit/codegen/onednn/interface.h>
#include <torch/csrc/jit/passes/utils/subgraph_utils.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "configure.h"

namespace widefield {
namespace {

constexpr int kRunsToWarm = 3;  // TorchScript profiles in the first, compiles in the second
thread_local bool fuse_on_this_thread = false;

// Removes fusion groups that compute only from constants: PyTorch reads the device of their first input and crashes.
void unmerge_groups_without_inputs(torch::jit::Block* block) {
  for (auto it = block->nodes().begin(); it != block->nodes().end();) {
    auto* node = *it++;
    for (auto* inner : node->blocks()) unmerge_groups_without_inputs(inner);
    if (node->kind() == torch::jit::prim::oneDNNFusionGroup && node->inputs().empty())
      torch::jit::SubgraphUtils::unmergeSubgraph(node);
  }
}

// Registers oneDNN graph fusion for models that ask for it; PyTorch's own switch is for the whole process.
void register_fusion() {
  static const auto pass = torch::jit::registerPrePass([](std::shared_ptr<torch::jit::Graph>& graph) {
    if (!fuse_on_this_thread) return;
    torch::jit::fuser::onednn::fuseGraph(graph);
    unmerge_groups_without_inputs(graph->block());
  });
  (void)pass;
}

bool is_fusion_failure(const std::exception& error) {
  return std::string(error.what()).find("File a bug report") != std::string::npos;
}

// Makes this thread's operators run without workers while it exists.
class WithoutWorkers {
 public:
  WithoutWorkers() { set_thread_count(1); }
  ~WithoutWorkers() { set_thread_count(before_); }
  WithoutWorkers(const WithoutWorkers&) = delete;

 private:
  const int before_ = at::get_num_threads();
};

// Converts forward()'s result to tensors. The native backend accepts only a tensor or a tuple of tensors.
std::vector<at::Tensor> flatten(const c10::IValue& result) {
  std::vector<c10::IValue> values;
  if (result.isTuple()) {
    values = result.toTupleRef().elements().vec();
  } else if (result.isList()) {
    values = result.toListRef().vec();
  } else {
    values = {result};
  }
  std::vector<at::Tensor> outputs;
  for (const auto& value : values) {
    if (!value.isTensor())
      throw std::invalid_argument("forward() returned " + value.tagKind() +
                                  ": it must return a tensor or a tuple of tensors");
    outputs.push_back(value.toTensor());
    if (outputs.back().dim() == 0)
      throw std::invalid_argument("forward() returned a scalar: outputs need a batch dimension");
  }
  return outputs;
}

}  // namespace

std::shared_ptr<torch::jit::Module> ModuleLoader::load(at::Device device) {
  if (!settings_.share_weights) return read(device);
  const std::lock_guard lock(mutex_);
  auto& shared = shared_[device.str()];
  if (!shared) shared = read(device);
  return shared;
}

std::shared_ptr<torch::jit::Module> ModuleLoader::read(at::Device device) const {
  if (!std::filesystem::is_regular_file(path_))
    throw std::invalid_argument(path_ + " is missing: build the repository first (build_models.py)");
  if (device.is_cuda() && !dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL))
    throw std::invalid_argument("an instance wants a GPU, and this PyTorch has none: " + std::string(dlerror()));
  // The server keeps the loading thread. If it left a team of workers, OpenMP would count more threads than cores, and
  // the workers of all other teams would sleep between operators instead of spinning.
  const WithoutWorkers alone;
  auto module = std::make_shared<torch::jit::Module>(torch::jit::load(path_, device));
  module->eval();
  return module;
}

TorchModel::TorchModel(
    const Settings& settings,
    ModuleLoader& loader,
    std::shared_ptr<torch::jit::Module> module,
    at::Device device,
    std::vector<int64_t> sizes)
    : settings_(settings),
      loader_(loader),
      device_(device),
      sizes_(std::move(sizes)),
      fused_(device.is_cpu() && settings.onednn_fusion),
      module_(std::move(module)),
      output_positions_(settings.output_positions()) {
  std::vector<std::string> arguments;
  const auto schema = module_->get_method("forward").function().getSchema();
  for (const auto& argument : schema.arguments())
    if (argument.name() != "self") arguments.push_back(argument.name());
  input_positions_ = settings.input_positions(arguments);
  if (fused_) register_fusion();
}

std::vector<at::Tensor> TorchModel::run(const std::vector<at::Tensor>& inputs) {
  const c10::DeviceGuard device(device_);
  const c10::InferenceMode inference(settings_.inference_mode);
  const at::NoGradGuard no_grad;
  const auto sizes = pieces(batch_of(inputs));
  if (sizes.size() < 2) return run_piece(inputs);
  std::vector<std::vector<at::Tensor>> parts(settings_.outputs.size());
  int64_t start = 0;
  for (const int64_t size : sizes) {
    std::vector<at::Tensor> piece;
    for (const auto& input : inputs) piece.push_back(input.narrow(0, start, size));
    const auto outputs = run_piece(piece);
    for (size_t i = 0; i < outputs.size(); ++i) parts[i].push_back(outputs[i]);
    start += size;
  }
  std::vector<at::Tensor> outputs;
  for (const auto& part : parts) outputs.push_back(at::cat(part));
  return outputs;
}

int64_t TorchModel::batch_of(const std::vector<at::Tensor>& inputs) const {
  return settings_.max_batch_size > 0 ? inputs[0].size(0) : 0;
}

std::vector<int64_t> TorchModel::pieces(int64_t batch) const {
  return fused_ && batch > 0 && !sizes_.empty() ? split_batch(batch, sizes_) : std::vector{batch};
}

bool TorchModel::is_warm(const std::vector<at::Tensor>& inputs) const {
  const auto sizes = pieces(batch_of(inputs));
  return std::all_of(sizes.begin(), sizes.end(), [this](int64_t size) {
    const auto found = runs_.find(size);
    return found != runs_.end() && found->second >= kRunsToWarm;
  });
}

std::vector<at::Tensor> TorchModel::run_piece(const std::vector<at::Tensor>& inputs) {
  const int64_t batch = batch_of(inputs);
  std::vector<c10::IValue> arguments(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) arguments[input_positions_[i]] = inputs[i].to(device_);
  const auto results = flatten(forward(std::move(arguments), batch));
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < output_positions_.size(); ++i) {
    if (output_positions_[i] >= results.size())
      throw std::invalid_argument("output '" + settings_.outputs[i].name + "' means position " +
                                  std::to_string(output_positions_[i]) + ", forward() has " +
                                  std::to_string(results.size()) + ": correct config.pbtxt");
    outputs.push_back(results[output_positions_[i]].to(at::kCPU).contiguous());
  }
  check(outputs, batch);
  ++runs_[batch];
  if (settings_.clean_cache && device_.is_cuda()) at::getDeviceAllocator(at::kCUDA)->emptyCache();
  return outputs;
}

// oneDNN fusion does not support every graph. A model that fails with fusion while it warms up, but not without, is run
// without fusion from then on.
c10::IValue TorchModel::forward(std::vector<c10::IValue> arguments, int64_t batch) {
  fuse_on_this_thread = fused_;
  if (!fused_) return module_->forward(std::move(arguments));
  try {
    return module_->forward(arguments);
  } catch (const std::exception& error) {
    if (runs_[batch] >= kRunsToWarm && !is_fusion_failure(error)) throw;
  }
  fuse_on_this_thread = false;
  if (!unfused_) unfused_ = loader_.read(device_);
  auto result = unfused_->forward(std::move(arguments));  // throws if the input is at fault
  const std::string message = loader_.path() + ": oneDNN graph fusion fails on this model and is turned off";
  TRITONSERVER_LogMessage(LOG_WARN, __FILE__, __LINE__, message.c_str());
  module_ = std::move(unfused_);
  fused_ = false;
  return result;
}

void TorchModel::check(const std::vector<at::Tensor>& outputs, int64_t batch) const {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& setting = settings_.outputs[i];
    if (outputs[i].scalar_type() != setting.scalar)
      throw std::invalid_argument("output '" + setting.name + "' is " + c10::toString(outputs[i].scalar_type()) +
                                  " and config.pbtxt says " + c10::toString(setting.scalar) + ": correct one of them");
    if (settings_.max_batch_size > 0 && outputs[i].size(0) != batch)
      throw std::invalid_argument("output '" + setting.name + "' has batch size " +
                                  std::to_string(outputs[i].size(0)) + " for a batch of " + std::to_string(batch) +
                                  ": the model bakes in a batch size");
  }
}

}  // namespace widefield
