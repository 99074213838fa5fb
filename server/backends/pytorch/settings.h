// The settings of a TorchScript model in its config.pbtxt, by the native LibTorch backend's rules.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../backend.h"
#include "json.h"

namespace widefield {

struct TensorSetting {
  std::string name;
  TRITONSERVER_DataType type;
  at::ScalarType scalar;  // the same as PyTorch's
  size_t rank;  // of forward()'s tensor, with the batch dimension
};

struct Settings {
  explicit Settings(const Json& config);

  int64_t max_batch_size;
  std::vector<TensorSetting> inputs, outputs;  // in config order
  std::string filename;               // of the weights, in the version's folder
  std::vector<int64_t> warmup_sizes;  // model_warmup's distinct batch sizes, largest first

  bool inference_mode, optimized_execution, disable_cudnn, clean_cache, share_weights;
  bool onednn_fusion;                                              // on CPU instances; not a key of the native backend
  std::optional<bool> jit_executor, jit_profiling, tensor_fuser;  // unset: LibTorch's default
  std::optional<int> intra_op_threads, inter_op_threads;
  std::optional<int> lone_threads;  // lone.h; not a key of the native backend

  // Position of each input in forward()'s arguments: by argument name, else NAME__<index>, else config order.
  std::vector<size_t> input_positions(const std::vector<std::string>& arguments) const;
  // Position of each output in forward()'s results: by NAME__<index>, else config order.
  std::vector<size_t> output_positions() const;
};

// Splits `count` samples into pieces of `sizes` (largest first); a remainder smaller than all is one piece.
std::vector<int64_t> split_batch(int64_t count, const std::vector<int64_t>& sizes);

}  // namespace widefield
