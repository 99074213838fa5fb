// Stands in for libcuda.so.1 where there is no GPU: does nothing, and writes each call that matters to $FAKE_LOG.
// Contexts are numbers: device d's are 10 d + 1, ..., the primary one 10 d + 9. A thread begins with none.
// A module's image is text: the name of the variant. $FAKE_ARCHITECTURE is the device's compute capability, times 10;
// $FAKE_FAIL the name of a function that fails; $FAKE_<kernel> the sizes of the kernel's parameters, a digit each.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Function {
  std::string variant, name;
  std::intptr_t context;
};

constexpr int kInvalidContext = 201, kInvalidHandle = 400, kIllegalAddress = 700;

void log(const std::string& line) {
  static std::mutex mutex;
  static FILE* file = std::fopen(std::getenv("FAKE_LOG"), "w");
  const std::lock_guard<std::mutex> lock(mutex);
  std::fprintf(file, "%s\n", line.c_str());
  std::fflush(file);
}

int status(const char* call) {
  const char* failing = std::getenv("FAKE_FAIL");
  return failing && std::strcmp(failing, call) == 0 ? kIllegalAddress : 0;
}

thread_local std::vector<std::intptr_t> contexts;  // as the driver has it, a stack
thread_local int capture_mode = 0;                 // CU_STREAM_CAPTURE_MODE_GLOBAL

std::intptr_t current() { return contexts.empty() ? 0 : contexts.back(); }

}  // namespace

extern "C" {

int cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(current());
  return status("cuCtxGetCurrent");
}

int cuCtxGetDevice(int* device) {
  if (!current()) return kInvalidContext;
  *device = static_cast<int>(current() / 10);
  return status("cuCtxGetDevice");
}

int cuCtxPushCurrent_v2(void* context) {
  if (const int failed = status("cuCtxPushCurrent")) return failed;
  contexts.push_back(reinterpret_cast<std::intptr_t>(context));
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return kInvalidContext;
  *context = reinterpret_cast<void*>(current());
  contexts.pop_back();
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return status("cuDeviceGet");
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  log("retain " + std::to_string(device) + " mode " + std::to_string(capture_mode));
  *context = reinterpret_cast<void*>(std::intptr_t{10 * device + 9});
  return status("cuDevicePrimaryCtxRetain");
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int architecture = std::atoi(std::getenv("FAKE_ARCHITECTURE"));
  *value = attribute == 75 ? architecture / 10 : architecture % 10;
  return status("cuDeviceGetAttribute");
}

int cuModuleLoadData(void** module, const void* image) {
  log("load " + std::string(static_cast<const char*>(image)) + " context " + std::to_string(current()) + " mode " +
      std::to_string(capture_mode));
  *module = const_cast<void*>(image);
  return status("cuModuleLoadData");
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = new Function{static_cast<const char*>(module), name, current()};
  return status("cuModuleGetFunction");
}

int cuModuleUnload(void* module) {
  log("unload " + std::string(static_cast<const char*>(module)));
  return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  log("attribute " + static_cast<Function*>(function)->variant + " " + std::to_string(attribute) + " " +
      std::to_string(value));
  return status("cuFuncSetAttribute");
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
  std::swap(*mode, capture_mode);
  return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra) {
  const auto& [variant, name, context] = *static_cast<Function*>(function);
  if (context != current()) return kInvalidHandle;
  std::string line = "launch " + variant;
  for (const unsigned number : {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes})
    line += " " + std::to_string(number);
  line += " " + std::to_string(reinterpret_cast<std::intptr_t>(stream)) + " " + std::to_string(context);
  line += extra ? " extra" : "";
  for (const char* size = std::getenv(("FAKE_" + name).c_str()); *size; ++size, ++parameters) {
    std::int64_t wide;
    std::int32_t narrow;
    std::memcpy(&wide, *parameters, *size == '8' ? 8 : 4);
    std::memcpy(&narrow, *parameters, 4);
    line += " " + std::to_string(*size == '8' ? wide : narrow);
  }
  log(line);
  return status("cuLaunchKernel");
}

int cuGetErrorString(int error, const char** text) {
  *text = error == kInvalidContext  ? "invalid device context"
          : error == kInvalidHandle ? "invalid resource handle"
                                    : "an illegal memory access was encountered";
  return 0;
}
}
