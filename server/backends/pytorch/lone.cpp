#include "lone.h"

#include <future>

#include "configure.h"

namespace widefield {

LoneModel::LoneModel(const Settings& settings, ModuleLoader& loader, std::vector<int64_t> sizes)
    : settings_(settings),
      model_(settings, loader, loader.read(at::kCPU), at::kCPU, std::move(sizes)),
      thread_([this] { work(); }) {}

LoneModel::~LoneModel() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

std::vector<at::Tensor> LoneModel::run(const std::vector<at::Tensor>& inputs) {
  // A shared_ptr: the worker thread is still inside the task when the result wakes this thread.
  const auto task = std::make_shared<std::packaged_task<std::vector<at::Tensor>()>>([&] { return model_.run(inputs); });
  auto outputs = task->get_future();
  {
    const std::lock_guard lock(mutex_);
    task_ = [task] { (*task)(); };
  }
  changed_.notify_one();
  return outputs.get();
}

void LoneModel::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || task_; });
    if (ending_) return;
    const auto task = std::move(task_);
    task_ = nullptr;
    lock.unlock();
    configure_thread(settings_, settings_.lone_threads);
    task();
    lock.lock();
  }
}

}  // namespace widefield
