// Backend "python_in_process": a model.py for tritonserver's Python backend, run in the server's own process.
//
// The Python backend runs each instance in a process of its own, which keeps the server safe from what a model may do, and
// costs each request two more wake-ups and copies. Here the server's thread calls Python. What is Python's is in bridge.py,
// which fills in `Bridge` through ctypes: so this needs nothing of Python to be built, and serves every version of it.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "../backend.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace widefield {

std::string message_of(const std::exception& error) { return error.what(); }

namespace {

// One tensor of a request or of an answer. These structs are bridge.py's too.
struct Tensor {
  const char* name;
  int32_t type;
  uint32_t rank;
  const int64_t* shape;
  const void* data;
  uint64_t bytes;
};

struct Request {
  const char* id;
  const Tensor* inputs;
  uint64_t input_count;
};

struct Bridge {
  // Python's. `text`: where a failure is to be told with `tell`.
  int64_t (*create)(const char* folder, const char* config, const char* instance, void* text);  // 0: failed
  void (*destroy)(int64_t model);
  void (*execute)(int64_t model, const Request* const* requests, uint64_t count);
  // This library's. `answer` may fail, by what it returns; `fail` takes a code of TRITONSERVER_Error's.
  const char* (*answer)(const Request* request, const Tensor* outputs, uint64_t count);
  void (*fail)(const Request* request, int32_t code, const char* message);
  void (*tell)(void* text, const char* message);
  void (*log)(int32_t level, const char* file, int32_t line, const char* message);
} bridge = {};

struct Libpython {
  void (*initialize)(int signals);
  int (*run)(const char* code);
  int (*ensure)();
  void* (*save)();
} libpython = {};

// A request from its tensors to its answer. Python sees the first part.
struct Work : Request {
  TRITONBACKEND_Request* request = nullptr;
  std::vector<Tensor> tensors;
  std::deque<std::string> pieces;  // tensors that came in several
  std::string failure;             // of the last answer
  uint64_t computed = 0;           // when it was answered
  bool success = false;

  bool answered() const { return computed != 0; }
  int64_t batch_size() const { return tensors.empty() || tensors[0].rank == 0 ? 1 : tensors[0].shape[0]; }
};

void send(Work& work, TRITONBACKEND_Response* response, TRITONSERVER_Error* error) {
  work.computed = work.computed ? work.computed : now_ns();
  work.success = !error;
  log_failure(TRITONBACKEND_ResponseSend(response, kResponseFinal, error));
}

void fail(Work& work, TRITONSERVER_ErrorCode code, const char* message) {
  TRITONBACKEND_Response* response = nullptr;
  if (auto* error = TRITONBACKEND_ResponseNew(&response, work.request)) return log_failure(error);
  auto* error = TRITONSERVER_ErrorNew(code, message);
  send(work, response, error);
  TRITONSERVER_ErrorDelete(error);
}

std::set<std::string> requested_outputs(TRITONBACKEND_Request* request) {
  std::set<std::string> names;
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  for (uint32_t index = 0; index < count; ++index) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, index, &name));
    names.insert(name);
  }
  return names;
}

void write(TRITONBACKEND_Response* response, const Tensor& tensor) {
  TRITONBACKEND_Output* output = nullptr;
  const auto type = static_cast<TRITONSERVER_DataType>(tensor.type);
  check(TRITONBACKEND_ResponseOutput(response, &output, tensor.name, type, tensor.shape, tensor.rank));
  void* buffer = nullptr;
  auto memory = MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_OutputBuffer(output, &buffer, tensor.bytes, &memory, &memory_id));
  if (memory == MEMORY_GPU) throw std::invalid_argument("output '" + std::string(tensor.name) + "' is wanted on a GPU");
  if (tensor.bytes > 0) std::memcpy(buffer, tensor.data, tensor.bytes);
}

const char* answer(const Request* request, const Tensor* outputs, uint64_t count) {
  Work& work = const_cast<Work&>(static_cast<const Work&>(*request));
  TRITONBACKEND_Response* response = nullptr;
  try {
    const auto requested = requested_outputs(work.request);
    check(TRITONBACKEND_ResponseNew(&response, work.request));
    work.computed = now_ns();
    for (uint64_t i = 0; i < count; ++i)
      if (requested.count(outputs[i].name)) write(response, outputs[i]);
    send(work, response, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    work.failure = error.what();
    work.computed = 0;
    if (response) log_failure(TRITONBACKEND_ResponseDelete(response));
    return work.failure.c_str();
  }
}

Tensor read(Work& work, uint32_t index) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInputByIndex(work.request, index, &input));
  Tensor tensor = {};
  auto type = TYPE_INVALID;
  uint32_t buffers = 0;
  check(TRITONBACKEND_InputProperties(
      input, &tensor.name, &type, &tensor.shape, &tensor.rank, &tensor.bytes, &buffers));
  tensor.type = type;
  std::string joined;
  for (uint32_t buffer = 0; buffer < buffers; ++buffer) {
    auto memory = MEMORY_CPU;
    int64_t memory_id = 0;
    uint64_t size = 0;
    check(TRITONBACKEND_InputBuffer(input, buffer, &tensor.data, &size, &memory, &memory_id));
    if (memory == MEMORY_GPU) throw std::invalid_argument("input '" + std::string(tensor.name) + "' lies on a GPU");
    if (buffers > 1) joined.append(static_cast<const char*>(tensor.data), size);
  }
  if (buffers > 1) tensor.data = work.pieces.emplace_back(std::move(joined)).data();
  return tensor;
}

// Whether Python is to see the request; where not, it has its answer.
bool read_request(Work& work) {
  try {
    bool cancelled = false;
    check(TRITONBACKEND_RequestIsCancelled(work.request, &cancelled));
    if (cancelled) return fail(work, ERROR_CANCELLED, "the request was cancelled"), false;
    check(TRITONBACKEND_RequestId(work.request, &work.id));
    uint32_t count = 0;
    check(TRITONBACKEND_RequestInputCount(work.request, &count));
    for (uint32_t index = 0; index < count; ++index) work.tensors.push_back(read(work, index));
    work.inputs = work.tensors.data();
    work.input_count = count;
    return true;
  } catch (const std::exception& error) {
    fail(work, ERROR_INTERNAL, error.what());
    return false;
  }
}

// Python keeps what it knows of a thread only while it holds the thread's state: one that stays, for the server's own.
void enter_python() {
  static thread_local const bool known = (libpython.ensure(), libpython.save(), true);
  (void)known;
}

template <class Function>
void find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (!function) throw std::runtime_error(dlerror());
}

void start_python(const std::string& folder) {
  const char* name = std::getenv("WIDEFIELD_LIBPYTHON");
  if (!name) throw std::runtime_error("WIDEFIELD_LIBPYTHON is not set: python -m server sets it");
  void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);  // Python's extension modules look for it among all
  if (!library) throw std::runtime_error(dlerror());
  find(library, "Py_InitializeEx", libpython.initialize);
  find(library, "PyRun_SimpleString", libpython.run);
  find(library, "PyGILState_Ensure", libpython.ensure);
  find(library, "PyEval_SaveThread", libpython.save);
  bridge.answer = answer;
  bridge.fail = [](const Request* request, int32_t code, const char* message) {
    fail(const_cast<Work&>(static_cast<const Work&>(*request)), static_cast<TRITONSERVER_ErrorCode>(code), message);
  };
  bridge.tell = [](void* text, const char* message) { *static_cast<std::string*>(text) = message; };
  bridge.log = [](int32_t level, const char* file, int32_t line, const char* message) {
    log_failure(TRITONSERVER_LogMessage(static_cast<TRITONSERVER_LogLevel>(level), file, line, message));
  };
  libpython.initialize(0);  // signals stay the server's
  const std::string place = std::to_string(reinterpret_cast<uintptr_t>(&bridge));
  const std::string code =
      "import sys\nsys.path.insert(0, '" + folder + "')\nimport bridge\nsys.path.pop(0)\nkept = bridge.connect(" + place + ")";
  const int failed = libpython.run(code.c_str());
  libpython.save();
  if (failed) throw std::runtime_error("Python cannot import " + folder + "/bridge.py: its own words are above");
}

struct Instance {
  Instance(TRITONBACKEND_Model* model, TRITONBACKEND_ModelInstance* handle) : handle(handle) {
    const char* name = nullptr;
    check(TRITONBACKEND_ModelInstanceName(handle, &name));
    std::string failure;
    enter_python();
    python = bridge.create(version_folder(model).c_str(), model_config(model).c_str(), name, &failure);
    if (!python) throw std::runtime_error(failure);
  }
  ~Instance() {
    enter_python();
    bridge.destroy(python);
  }

  TRITONBACKEND_ModelInstance* handle;
  int64_t python = 0;
};

void execute(Instance& instance, TRITONBACKEND_Request** requests, uint32_t count) {
  const uint64_t start = now_ns();
  std::vector<Work> works(count);
  std::vector<const Request*> ready;
  int64_t samples = 0;
  for (uint32_t index = 0; index < count; ++index) {
    works[index].request = requests[index];
    if (!read_request(works[index])) continue;
    ready.push_back(&works[index]);
    samples += works[index].batch_size();
  }
  const uint64_t compute_start = now_ns();
  enter_python();
  if (!ready.empty()) bridge.execute(instance.python, ready.data(), ready.size());
  for (Work& work : works)
    if (!work.answered()) fail(work, ERROR_INTERNAL, "the model gave no answer");
  const uint64_t end = now_ns();
  for (Work& work : works) {
    log_failure(TRITONBACKEND_ModelInstanceReportStatistics(
        instance.handle, work.request, work.success, start, compute_start, std::max(compute_start, work.computed), end));
    log_failure(TRITONBACKEND_RequestRelease(work.request, kReleaseAll));
  }
  if (samples > 0)
    log_failure(TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance.handle, samples, start, compute_start, std::max(compute_start, works[0].computed), end));
}

}  // namespace
}  // namespace widefield

using namespace widefield;

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend) {
  return guarded([&] {
    check_api_version();
    int artifact = 0;
    const char* folder = nullptr;
    check(TRITONBACKEND_BackendArtifacts(backend, &artifact, &folder));
    start_python(folder);
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    check(TRITONBACKEND_ModelInstanceSetState(instance, std::make_unique<Instance>(model, instance).release()));
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return guarded([&] { delete state_of<Instance>(instance, TRITONBACKEND_ModelInstanceState); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, const uint32_t count) {
  return guarded([&] { execute(*state_of<Instance>(instance, TRITONBACKEND_ModelInstanceState), requests, count); });
}
