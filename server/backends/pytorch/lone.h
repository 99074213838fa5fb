// LONE_THREAD_COUNT: an execution that finds its model idle computes with that many threads, others with their own few.
//
// Instances of few threads each give the most images a second, since none waits for another's at an operator's end; but
// one request alone would leave cores idle.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "model.h"

namespace widefield {

// A model's executions that run alone: one thread of their own, whose workers spread over the cores, whichever instance
// asks. Two instances with such a team each would be more threads than cores, and OpenMP's workers then sleep between
// operators.
class LoneModel {
 public:
  LoneModel(const Settings& settings, ModuleLoader& loader, std::vector<int64_t> sizes);  // of its pieces
  ~LoneModel();
  LoneModel(const LoneModel&) = delete;

  // Throws what `TorchModel::run` does. One caller at a time.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

 private:
  void work();

  const Settings& settings_;
  TorchModel model_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> task_;
  bool ending_ = false;
  std::thread thread_;  // the last member: it uses the others
};

}  // namespace widefield
