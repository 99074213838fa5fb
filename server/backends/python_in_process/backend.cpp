// Backend "python_in_process": a model.py for tritonserver's Python backend, run in the server's own process.
//
// The Python backend runs each instance in its own process, which protects the server from the model but costs each
// request two more wake-ups and copies. Here the server's thread calls Python. The Python code is in bridge.py, which
// fills in `Bridge` through ctypes, so this file builds without Python's headers and works with every Python version.
#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "request.h"

namespace widefield {

std::string message_of(const std::exception& error) { return error.what(); }

namespace {

struct Bridge {
  // Implemented in Python. `create` reports a failure by calling `tell` with `text`.
  int64_t (*create)(const char* folder, const char* config, const char* instance, void* text);  // 0: failed
  void (*destroy)(int64_t model);
  void (*execute)(int64_t model, Request* const* requests, uint64_t count);
  // Implemented here. `answer` returns an error message or null; the code of `fail` is a TRITONSERVER_Error's.
  const char* (*answer)(Request* request, const Tensor* outputs, uint64_t count);
  void (*fail)(Request* request, int32_t code, const char* message);
  void (*tell)(void* text, const char* message);
  void (*log)(int32_t level, const char* file, int32_t line, const char* message);
} bridge = {};

struct Libpython {
  int (*is_initialized)();
  void (*initialize)(int signals);
  int (*run)(const char* code);
  int (*ensure)();
  void* (*save)();
} libpython = {};

// Gives the calling thread a permanent Python thread state; otherwise Python would make a new one for each call.
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
  void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);  // GLOBAL: Python's extension modules need its symbols
  if (!library) throw std::runtime_error(dlerror());
  find(library, "Py_IsInitialized", libpython.is_initialized);
  find(library, "Py_InitializeEx", libpython.initialize);
  find(library, "PyRun_SimpleString", libpython.run);
  find(library, "PyGILState_Ensure", libpython.ensure);
  find(library, "PyEval_SaveThread", libpython.save);
  bridge.answer = [](Request* request, const Tensor* outputs, uint64_t count) {
    return answer(work_of(request), outputs, count);
  };
  bridge.fail = [](Request* request, int32_t code, const char* message) {
    fail(work_of(request), static_cast<TRITONSERVER_ErrorCode>(code), message);
  };
  bridge.tell = [](void* text, const char* message) { *static_cast<std::string*>(text) = message; };
  bridge.log = [](int32_t level, const char* file, int32_t line, const char* message) {
    log_failure(TRITONSERVER_LogMessage(static_cast<TRITONSERVER_LogLevel>(level), file, line, message));
  };
  if (!libpython.is_initialized()) {  // it may be, if an earlier load of this backend failed
    libpython.initialize(0);          // leaves the server's signal handlers
    libpython.save();
  }
  const std::string place = std::to_string(reinterpret_cast<uintptr_t>(&bridge));
  const std::string code =
      "import sys\nsys.path.insert(0, '" + folder + "')\nimport bridge\nsys.path.pop(0)\nkept = bridge.connect(" + place + ")";
  libpython.ensure();
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
  std::vector<Request*> ready;
  int64_t samples = 0;
  for (uint32_t index = 0; index < count; ++index) {
    Work& work = works[index];
    work.instance = instance.handle;
    work.request = requests[index];
    work.start = work.compute_start = start;
    if (!read_request(work)) continue;
    ready.push_back(&work);
    samples += work.batch_size();
  }
  if (ready.empty()) return;
  const uint64_t compute_start = now_ns();
  for (Work& work : works) work.compute_start = compute_start;
  enter_python();
  bridge.execute(instance.python, ready.data(), ready.size());
  const uint64_t end = now_ns();
  for (Work& work : works)
    if (work.request) fail(work, ERROR_INTERNAL, "the model gave no answer");
  log_failure(TRITONBACKEND_ModelInstanceReportBatchStatistics(
      instance.handle, samples, start, compute_start, end, end));
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
