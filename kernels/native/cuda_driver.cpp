#include "cuda_driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace widefield {
namespace {

using CUresult = int;
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // CUdevice_attribute
constexpr int kMaxDynamicSharedBytes = 8;                                  // CUfunction_attribute
constexpr int kRelaxed = 2;                                                // CUstreamCaptureMode
constexpr unsigned kDefaultSharedBytes = 48 * 1024;

// The few functions of libcuda.so.1 that a launch needs, by their documented C signatures.
struct Driver {
  CUresult (*cuCtxGetCurrent)(void** context);
  CUresult (*cuCtxGetDevice)(int* device);
  CUresult (*cuCtxPushCurrent)(void* context);
  CUresult (*cuCtxPopCurrent)(void** context);
  CUresult (*cuDeviceGet)(int* device, int ordinal);
  CUresult (*cuDevicePrimaryCtxRetain)(void** context, int device);
  CUresult (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  CUresult (*cuModuleLoadData)(void** module, const void* image);
  CUresult (*cuModuleGetFunction)(void** function, void* module, const char* name);
  CUresult (*cuModuleUnload)(void* module);
  CUresult (*cuFuncSetAttribute)(void* function, int attribute, int value);
  CUresult (*cuLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                             void** extra);
  CUresult (*cuThreadExchangeStreamCaptureMode)(int* mode);
  CUresult (*cuGetErrorString)(CUresult error, const char** text);

  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

  void check(CUresult result, const char* call) const {
    if (result == 0) return;
    const char* text = nullptr;
    cuGetErrorString(result, &text);
    throw std::runtime_error(std::string("widefield: ") + call + " failed: " + (text ? text : "unknown error"));
  }

 private:
  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) throw std::runtime_error("widefield: libcuda.so.1 was not found: is the NVIDIA driver installed?");
    find(library, "cuCtxGetCurrent", cuCtxGetCurrent);
    find(library, "cuCtxGetDevice", cuCtxGetDevice);
    find(library, "cuCtxPushCurrent_v2", cuCtxPushCurrent);  // the names that cuda.h gives them
    find(library, "cuCtxPopCurrent_v2", cuCtxPopCurrent);
    find(library, "cuDeviceGet", cuDeviceGet);
    find(library, "cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain);
    find(library, "cuDeviceGetAttribute", cuDeviceGetAttribute);
    find(library, "cuModuleLoadData", cuModuleLoadData);
    find(library, "cuModuleGetFunction", cuModuleGetFunction);
    find(library, "cuModuleUnload", cuModuleUnload);
    find(library, "cuFuncSetAttribute", cuFuncSetAttribute);
    find(library, "cuLaunchKernel", cuLaunchKernel);
    find(library, "cuThreadExchangeStreamCaptureMode", cuThreadExchangeStreamCaptureMode);
    find(library, "cuGetErrorString", cuGetErrorString);
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string("widefield: libcuda.so.1 has no ") + name);
  }
};

// While this object exists, its thread may load a module or retain a context although a stream is being captured:
// neither is recorded in the graph.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) : driver_(driver) { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  int mode_ = kRelaxed;
};

// While this object exists, `context` is the current context of its thread.
class InContext {
 public:
  InContext(const Driver& driver, void* context) : driver_(driver) {
    void* current = nullptr;
    driver_.check(driver_.cuCtxGetCurrent(&current), "cuCtxGetCurrent");
    if (current == context) return;
    driver_.check(driver_.cuCtxPushCurrent(context), "cuCtxPushCurrent");
    pushed_ = true;
  }
  ~InContext() {
    void* popped = nullptr;
    if (pushed_) driver_.cuCtxPopCurrent(&popped);
  }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;

 private:
  const Driver& driver_;
  bool pushed_ = false;
};

// Returns a device's primary context. It is retained once and never released: PyTorch too keeps it until the process
// ends.
void* primary_context(const Driver& driver, int device) {
  static std::mutex mutex;
  static std::map<int, void*> contexts;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& context = contexts[device];
  if (!context) {
    const RelaxedCapture relaxed(driver);
    void* retained = nullptr;
    driver.check(driver.cuDevicePrimaryCtxRetain(&retained, device), "cuDevicePrimaryCtxRetain");
    context = retained;
  }
  return context;
}

// Returns a cubin's function, loaded once per context: it belongs to the context that loaded its module.
void* load(const Driver& driver, void* context, const Cubin& cubin) {
  static std::mutex mutex;
  static std::map<std::pair<void*, const Cubin*>, void*> functions;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& function = functions[{context, &cubin}];
  if (!function) {
    const RelaxedCapture relaxed(driver);
    void* module = nullptr;
    void* loaded = nullptr;
    driver.check(driver.cuModuleLoadData(&module, cubin.image), "cuModuleLoadData");
    try {
      driver.check(driver.cuModuleGetFunction(&loaded, module, cubin.name), "cuModuleGetFunction");
      if (cubin.shared_bytes > kDefaultSharedBytes)
        driver.check(driver.cuFuncSetAttribute(loaded, kMaxDynamicSharedBytes, static_cast<int>(cubin.shared_bytes)),
                     "cuFuncSetAttribute");
    } catch (...) {
      driver.cuModuleUnload(module);
      throw;
    }
    function = loaded;
  }
  return function;
}

}  // namespace

Device Device::get(int ordinal) {
  const Driver& driver = Driver::get();
  void* context = nullptr;
  int device = 0, current = 0, major = 0, minor = 0;
  driver.check(driver.cuDeviceGet(&device, ordinal), "cuDeviceGet");
  driver.check(driver.cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  if (context) driver.check(driver.cuCtxGetDevice(&current), "cuCtxGetDevice");
  if (!context || current != device) context = primary_context(driver, device);
  driver.check(driver.cuDeviceGetAttribute(&major, kComputeCapabilityMajor, device), "cuDeviceGetAttribute");
  driver.check(driver.cuDeviceGetAttribute(&minor, kComputeCapabilityMinor, device), "cuDeviceGetAttribute");
  return {context, 10 * major + minor};
}

void launch_cubin(const Device& device, const Cubin& cubin, unsigned grid_x, unsigned grid_y, void* stream,
                  void** parameters) {
  const Driver& driver = Driver::get();
  const InContext in_context(driver, device.context);
  void* function = load(driver, device.context, cubin);
  driver.check(driver.cuLaunchKernel(function, grid_x, grid_y, 1, 32 * cubin.warps, 1, 1, cubin.shared_bytes, stream,
                                     parameters, nullptr),
               "cuLaunchKernel");
}

}  // namespace widefield
