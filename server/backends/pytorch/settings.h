// What config.pbtxt says of one TorchScript model, by the native LibTorch backend's rules.
#pragma once

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
  size_t rank;  // of what forward() gets, the batch's dimension included
};

struct Settings {
  explicit Settings(const Json& config);

  int64_t max_batch_size;
  std::vector<TensorSetting> inputs, outputs;  // in config order
  std::string filename;               // of the weights, inside the version's folder
  std::vector<int64_t> warmup_sizes;  // model_warmup's batch sizes, largest first, each once

  bool inference_mode, optimized_execution, disable_cudnn, clean_cache, share_weights;
  bool onednn_fusion;                                              // of CPU instances; not a key of the native backend
  std::optional<bool> jit_executor, jit_profiling, tensor_fuser;  // unnamed: LibTorch's default
  std::optional<int> intra_op_threads, inter_op_threads;
  std::optional<int> lone_threads;  // lone.h; not a key of the native backend

  // Where in forward()'s arguments each input goes: by argument name, else NAME__<index>, else config order.
  std::vector<size_t> input_positions(const std::vector<std::string>& arguments) const;
  // Which of forward()'s results each output is: by NAME__<index>, else config order.
  std::vector<size_t> output_positions() const;
};

// `count` samples in pieces of the warmed-up sizes (largest first); what no size fits stays one piece.
std::vector<int64_t> split_batch(int64_t count, const std::vector<int64_t>& sizes);

}  // namespace widefield
