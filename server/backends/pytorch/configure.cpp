#include "configure.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <sched.h>
#include <torch/csrc/jit/passes/tensorexpr_fuser.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <mutex>
#include <vector>

// From libtorch's OpenMP library, whatever its file name is.
extern "C" void omp_set_num_threads(int count) __attribute__((weak));

namespace widefield {
namespace {

// Pins one thread to each core if the model uses every core. Otherwise two threads that wait for each other at the end
// of an operator may share a core while another core is idle, which costs most of the throughput under load.
void spread_over_cores() {
  cpu_set_t allowed;
  const int count = at::get_num_threads();
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || count < 2 || count != CPU_COUNT(&allowed)) return;
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  at::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cores[at::get_thread_num()], &own);
    sched_setaffinity(0, sizeof(own), &own);
  });
}

}  // namespace

void configure_process(const Settings& settings) {
  static std::once_flag inter_op;
  if (settings.inter_op_threads)
    std::call_once(inter_op, [&] { at::set_num_interop_threads(*settings.inter_op_threads); });
  if (settings.disable_cudnn) at::globalContext().setUserEnabledCuDNN(false);
  if (settings.jit_executor) torch::jit::getExecutorMode() = *settings.jit_executor;
  if (settings.jit_profiling) torch::jit::getProfilingMode() = *settings.jit_profiling;
  if (settings.tensor_fuser) torch::jit::setTensorExprFuserEnabled(*settings.tensor_fuser);
}

void set_thread_count(int count) {
  if (!omp_set_num_threads) return;
  // PyTorch sets the thread count from the environment at its first use, once in its library and once in code inlined
  // here. Both must happen before the count is set below.
  at::internal::lazy_init_num_threads();
  at::get_num_threads();
  omp_set_num_threads(count);
}

void configure_thread(const Settings& settings, std::optional<int> threads) {
  torch::jit::setGraphExecutorOptimize(settings.optimized_execution);
  if (threads) set_thread_count(*threads);
  static thread_local bool spread = false;
  if (!spread) spread_over_cores();
  spread = true;
}

}  // namespace widefield
