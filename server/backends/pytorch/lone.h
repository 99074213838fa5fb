// LONE_THREAD_COUNT: the number of threads of an execution that finds its model idle; others use INTRA_OP_THREAD_COUNT.
//
// Several instances with few threads each give the most images a second, since fewer threads wait for each other at the
// end of an operator. But then a single request would leave cores idle.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "model.h"

namespace widefield {

// Runs a model's lone executions, for all its instances, in one thread whose OpenMP workers are spread over the cores.
// If each instance had such a team, there would be more threads than cores, and workers would sleep between operators.
class LoneModel {
 public:
  LoneModel(const Settings& settings, ModuleLoader& loader, std::vector<int64_t> sizes);  // sizes of the pieces
  ~LoneModel();
  LoneModel(const LoneModel&) = delete;

  // Throws what `TorchModel::run` throws. Must not be called by two threads at once.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

 private:
  void work();

  const Settings& settings_;
  TorchModel model_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> task_;
  bool ending_ = false;
  std::thread thread_;  // the last member, since it uses the others
};

}  // namespace widefield
