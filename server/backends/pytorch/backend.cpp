// Backend "pytorch" for a tritonserver without the native LibTorch backend: runs TorchScript by the native one's rules.
//
// The requests of one execute call run as one batch; if that fails, each request runs separately. With oneDNN graph
// fusion (on a CPU; ENABLE_ONEDNN_FUSION "false" turns it off) the batch is split into pieces of the sizes in the
// config's model_warmup, since the fuser compiles the model for each new batch size, which takes some slow runs and a
// copy of the weights. With pieces of one image, or LONE_THREAD_COUNT, requests run and are answered one by one.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>

#include "configure.h"
#include "lone.h"
#include "model.h"
#include "request.h"

namespace widefield {
namespace {

struct Model {
  explicit Model(TRITONBACKEND_Model* model)
      : settings(Json::parse(model_config(model))), loader(settings, version_folder(model) + "/" + settings.filename) {
    configure_process(settings);
  }
  Settings settings;
  ModuleLoader loader;
  std::once_flag lone_loaded;
  std::unique_ptr<LoneModel> lone;
  std::atomic<int> computing = 0;  // instances that are computing
};

// Counts one of the model's instances as computing while it exists.
struct Turn {
  explicit Turn(std::atomic<int>& computing) : computing(computing) { ++computing; }
  ~Turn() { --computing; }
  std::atomic<int>& computing;
};

at::Device device_of(TRITONBACKEND_ModelInstance* instance) {
  auto kind = KIND_AUTO;
  int32_t index = 0;
  check(TRITONBACKEND_ModelInstanceKind(instance, &kind));
  if (kind != KIND_GPU) return at::kCPU;
  check(TRITONBACKEND_ModelInstanceDeviceId(instance, &index));
  return {at::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

struct Instance {
  Instance(Model& model, TRITONBACKEND_ModelInstance* handle)
      : handle(handle),
        model(model),
        settings(model.settings),
        device(device_of(handle)),
        lone(settings.lone_threads && device.is_cpu()),
        torch_model(settings, model.loader, model.loader.load(device), device, piece_sizes()) {
    if (lone)
      std::call_once(model.lone_loaded, [&] {
        model.lone = std::make_unique<LoneModel>(settings, model.loader, piece_sizes());
      });
  }

  std::vector<at::Tensor> compute(const std::vector<at::Tensor>& inputs) {
    if (!lone || model.computing > 1) return torch_model.run(inputs);
    // During warm-up the model is idle, so both models are warmed here.
    if (!torch_model.is_warm(inputs)) torch_model.run(inputs);
    return model.lone->run(inputs);
  }

  // With few threads a batch is no faster per image than single images: one size, one copy of the weights is enough.
  std::vector<int64_t> piece_sizes() const {
    const auto& sizes = settings.warmup_sizes;
    return lone && !sizes.empty() ? std::vector{sizes.back()} : sizes;
  }

  // Whether requests run one by one, which costs nothing for pieces of one image; the first need not wait for the last.
  bool singly() const { return piece_sizes() == std::vector<int64_t>{1} && (lone || torch_model.is_fused()); }

  TRITONBACKEND_ModelInstance* handle;
  Model& model;
  const Settings& settings;
  const at::Device device;
  const bool lone;  // executions that find the model idle run on model.lone
  TorchModel torch_model;
};

// Runs one forward pass over all requests and splits the outputs by their batch sizes.
void run_together(Instance& instance, const std::vector<Work*>& works) {
  std::vector<at::Tensor> inputs;
  for (size_t i = 0; i < instance.settings.inputs.size(); ++i) {
    std::vector<at::Tensor> parts;
    for (const auto* work : works) parts.push_back(work->inputs[i]);
    inputs.push_back(at::cat(parts));
  }
  const auto outputs = instance.compute(inputs);
  int64_t start = 0;
  for (auto* work : works) {
    const int64_t size = work->inputs[0].size(0);
    for (const auto& output : outputs) work->outputs.push_back(output.narrow(0, start, size));
    start += size;
  }
}

void run(Instance& instance, const std::vector<Work*>& works) {
  if (works.size() > 1 && instance.settings.max_batch_size > 0) {
    try {
      return run_together(instance, works);
    } catch (const std::exception&) {  // run separately, so that only the faulty ones fail
    }
  }
  for (auto* work : works) attempt(*work, [&] { work->outputs = instance.compute(work->inputs); });
}

void execute(Instance& instance, TRITONBACKEND_Request** requests, uint32_t count) {
  const uint64_t exec_start = now_ns();
  configure_thread(instance.settings, instance.settings.intra_op_threads);
  std::vector<Work> works(count);
  std::vector<Work*> ready;
  int64_t samples = 0;
  for (uint32_t index = 0; index < count; ++index) {
    Work& work = works[index];
    work.request = requests[index];
    attempt(work, [&] { read_inputs(work, instance.settings); });
    if (!work.ready()) continue;
    ready.push_back(&work);
    samples += work.batch_size(instance.settings);
  }
  const uint64_t compute_start = now_ns();
  run(instance, ready);
  const uint64_t compute_end = now_ns();
  for (Work& work : works) answer(work, instance.settings);
  const uint64_t exec_end = now_ns();
  // Each request is counted and released before its answer is sent: a client that has the answer finds it in the
  // statistics, and may free the shared memory that held the request.
  for (Work& work : works) {
    work.inputs.clear();  // they may point into the request
    if (work.code != ERROR_CANCELLED)  // a cancelled request is not the backend's failure
      log_failure(TRITONBACKEND_ModelInstanceReportStatistics(
          instance.handle, work.request, work.ready(), exec_start, compute_start, compute_end, exec_end));
    log_failure(TRITONBACKEND_RequestRelease(work.request, kReleaseAll));
  }
  if (samples > 0)
    log_failure(TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance.handle, samples, exec_start, compute_start, compute_end, exec_end));
  for (Work& work : works) send(work);
}

void refuse(TRITONBACKEND_Request* request, TRITONSERVER_Error* error) {
  TRITONBACKEND_Response* response = nullptr;
  log_failure(TRITONBACKEND_ResponseNew(&response, request));
  if (response) log_failure(TRITONBACKEND_ResponseSend(response, kResponseFinal, error));
  log_failure(TRITONBACKEND_RequestRelease(request, kReleaseAll));
  TRITONSERVER_ErrorDelete(error);
}

}  // namespace
}  // namespace widefield

using namespace widefield;

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return guarded([] {
    check_api_version();
    const char* library = std::getenv("WIDEFIELD_LIBRARY");
    if (!library || !*library) return;
    if (!std::filesystem::is_regular_file(library))
      throw std::runtime_error("WIDEFIELD_LIBRARY names " + std::string(library) + ", which is missing: build it");
    if (!dlopen(library, RTLD_NOW | RTLD_LOCAL)) throw std::runtime_error(dlerror());
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return guarded([&] { check(TRITONBACKEND_ModelSetState(model, std::make_unique<Model>(model).release())); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return guarded([&] { delete state_of<Model>(model, TRITONBACKEND_ModelState); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    auto state = std::make_unique<Instance>(*state_of<Model>(model, TRITONBACKEND_ModelState), instance);
    check(TRITONBACKEND_ModelInstanceSetState(instance, state.release()));
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { delete state_of<Instance>(instance, TRITONBACKEND_ModelInstanceState); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, const uint32_t count) {
  return guarded([&] {
    auto& state = *state_of<Instance>(instance, TRITONBACKEND_ModelInstanceState);
    const Turn turn(state.model.computing);
    const uint32_t together = state.singly() ? 1 : count;
    execute(state, requests, together);
    for (uint32_t start = together; start < count; ++start)  // an error returned here would answer the first again
      if (auto* error = guarded([&] { execute(state, requests + start, 1); })) refuse(requests[start], error);
  });
}
