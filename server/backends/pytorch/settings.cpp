#include "settings.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>

namespace widefield {
namespace {

const std::map<std::string, std::pair<TRITONSERVER_DataType, at::ScalarType>> kTypes{
    {"TYPE_BOOL", {TYPE_BOOL, at::kBool}},    {"TYPE_UINT8", {TYPE_UINT8, at::kByte}},
    {"TYPE_INT8", {TYPE_INT8, at::kChar}},    {"TYPE_INT16", {TYPE_INT16, at::kShort}},
    {"TYPE_INT32", {TYPE_INT32, at::kInt}},   {"TYPE_INT64", {TYPE_INT64, at::kLong}},
    {"TYPE_FP16", {TYPE_FP16, at::kHalf}},    {"TYPE_BF16", {TYPE_BF16, at::kBFloat16}},
    {"TYPE_FP32", {TYPE_FP32, at::kFloat}},   {"TYPE_FP64", {TYPE_FP64, at::kDouble}},
};

std::vector<TensorSetting> tensors(const std::string& kind, const Json& list, bool batched) {
  std::vector<TensorSetting> settings;
  for (const Json& item : list.items) {
    const std::string &name = item["name"].text, &type = item["data_type"].text;
    const auto found = kTypes.find(type);
    if (found == kTypes.end())
      throw std::invalid_argument(kind + " '" + name + "' has data_type " + type + ", which is not supported");
    const Json& shape = item["reshape"].members.empty() ? item["dims"] : item["reshape"]["shape"];
    const auto [server, scalar] = found->second;
    settings.push_back({name, server, scalar, shape.items.size() + batched});
  }
  return settings;
}

bool is_number(const std::string& text) {
  return !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
}

class Parameters {
 public:
  explicit Parameters(const Json& config) : parameters_(config["parameters"]) {}

  std::optional<bool> flag(const std::string& name) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    std::string lower = *value;
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    if (lower == "true" || lower == "1") return true;
    if (lower == "false" || lower == "0") return false;
    throw std::invalid_argument("parameter " + name + " is \"" + *value + "\": write \"true\" or \"false\"");
  }

  std::optional<int> count(const std::string& name) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    const int number = is_number(*value) ? std::stoi(*value) : 0;
    if (number < 1)
      throw std::invalid_argument("parameter " + name + " is \"" + *value + "\": write a number of threads, 1 or more");
    return number;
  }

 private:
  std::optional<std::string> text(const std::string& name) const {
    const auto found = parameters_.members.find(name);
    if (found == parameters_.members.end()) return std::nullopt;
    return found->second["string_value"].text;
  }

  const Json& parameters_;
};

// Returns the index of a name such as NAME__<index>.
std::optional<size_t> written_index(const std::string& name) {
  const size_t mark = name.rfind("__");
  if (mark == std::string::npos) return std::nullopt;
  const std::string digits = name.substr(mark + 2);
  return is_number(digits) ? std::optional(std::stoul(digits)) : std::nullopt;
}

std::vector<size_t> positions(const std::vector<TensorSetting>& tensors, const std::vector<std::string>& arguments) {
  std::vector<size_t> by_argument, by_index, by_order;
  for (const auto& tensor : tensors) {
    const auto argument = std::find(arguments.begin(), arguments.end(), tensor.name);
    if (argument != arguments.end()) by_argument.push_back(argument - arguments.begin());
    if (const auto index = written_index(tensor.name)) by_index.push_back(*index);
    by_order.push_back(by_order.size());
  }
  if (by_argument.size() == tensors.size()) return by_argument;
  return by_index.size() == tensors.size() ? by_index : by_order;
}

void check_distinct(
    const std::string& kind, const std::vector<TensorSetting>& tensors, const std::vector<size_t>& positions) {
  for (size_t i = 0; i < tensors.size(); ++i)
    if (std::count(positions.begin(), positions.end(), positions[i]) > 1)
      throw std::invalid_argument(kind + " '" + tensors[i].name + "' and another both mean position " +
                                  std::to_string(positions[i]) + ": give each its own index");
}

}  // namespace

Settings::Settings(const Json& config)
    : max_batch_size(config["max_batch_size"].number()),
      inputs(tensors("input", config["input"], max_batch_size > 0)),
      outputs(tensors("output", config["output"], max_batch_size > 0)),
      filename(config["default_model_filename"].text.empty() ? "model.pt" : config["default_model_filename"].text) {
  if (inputs.empty() && max_batch_size > 0)
    throw std::invalid_argument("the config has no input to take the batch's size from: write max_batch_size: 0");
  if (outputs.empty()) throw std::invalid_argument("the config has no output: declare at least one");
  std::set<int64_t, std::greater<>> sizes;
  for (const Json& warmup : config["model_warmup"].items)
    if (const int64_t size = warmup["batch_size"].number(); size > 0) sizes.insert(size);
  warmup_sizes.assign(sizes.begin(), sizes.end());

  const Parameters parameters(config);
  inference_mode = parameters.flag("INFERENCE_MODE").value_or(true);
  optimized_execution = !parameters.flag("DISABLE_OPTIMIZED_EXECUTION").value_or(false);
  disable_cudnn = parameters.flag("DISABLE_CUDNN").value_or(false);
  clean_cache = parameters.flag("ENABLE_CACHE_CLEANING").value_or(false);
  share_weights = parameters.flag("ENABLE_WEIGHT_SHARING").value_or(false);
  onednn_fusion = parameters.flag("ENABLE_ONEDNN_FUSION").value_or(true);
  jit_executor = parameters.flag("ENABLE_JIT_EXECUTOR");
  jit_profiling = parameters.flag("ENABLE_JIT_PROFILING");
  tensor_fuser = parameters.flag("ENABLE_TENSOR_FUSER");
  intra_op_threads = parameters.count("INTRA_OP_THREAD_COUNT");
  inter_op_threads = parameters.count("INTER_OP_THREAD_COUNT");
  lone_threads = parameters.count("LONE_THREAD_COUNT");
  output_positions();  // so that a wrong config fails at load, not at a request
}

std::vector<size_t> Settings::input_positions(const std::vector<std::string>& arguments) const {
  if (inputs.size() != arguments.size()) {
    std::string names;
    for (const auto& argument : arguments) names += (names.empty() ? "" : ", ") + argument;
    throw std::invalid_argument("the config has " + std::to_string(inputs.size()) + " inputs, forward() takes " +
                                std::to_string(arguments.size()) + ": [" + names + "]");
  }
  const auto found = positions(inputs, arguments);
  check_distinct("input", inputs, found);
  for (size_t i = 0; i < found.size(); ++i)
    if (found[i] >= arguments.size())
      throw std::invalid_argument("input '" + inputs[i].name + "' means position " + std::to_string(found[i]) +
                                  ", forward() has " + std::to_string(arguments.size()) + ": correct config.pbtxt");
  return found;
}

std::vector<size_t> Settings::output_positions() const {
  const auto found = positions(outputs, {});
  check_distinct("output", outputs, found);
  return found;
}

std::vector<int64_t> split_batch(int64_t count, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> pieces;
  for (const int64_t size : sizes) {
    pieces.insert(pieces.end(), count / size, size);
    count %= size;
  }
  if (count > 0) pieces.push_back(count);
  return pieces;
}

}  // namespace widefield
