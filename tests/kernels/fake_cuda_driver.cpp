// Stands in for libcuda.so.1 where there is no GPU: does nothing, and writes each call that matters to $FAKE_LOG.
// A module's image is text: the name of the variant. $FAKE_ARCHITECTURE is the device's compute capability, times 10;
// $FAKE_FAIL the name of a function that fails; $FAKE_<kernel> the sizes of the kernel's parameters, a digit each.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace {

struct Function {
  std::string variant, name;
};

void log(const std::string& line) {
  static std::mutex mutex;
  static FILE* file = std::fopen(std::getenv("FAKE_LOG"), "w");
  const std::lock_guard<std::mutex> lock(mutex);
  std::fprintf(file, "%s\n", line.c_str());
  std::fflush(file);
}

int status(const char* call) {
  const char* failing = std::getenv("FAKE_FAIL");
  return failing && std::strcmp(failing, call) == 0 ? 700 : 0;
}

thread_local std::intptr_t context = 1;
thread_local int capture_mode = 0;  // CU_STREAM_CAPTURE_MODE_GLOBAL

}  // namespace

extern "C" {

void fake_set_context(int number) { context = number; }

int cuCtxGetCurrent(void** current) {
  *current = reinterpret_cast<void*>(context);
  return status("cuCtxGetCurrent");
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return status("cuCtxGetDevice");
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int architecture = std::atoi(std::getenv("FAKE_ARCHITECTURE"));
  *value = attribute == 75 ? architecture / 10 : architecture % 10;
  return status("cuDeviceGetAttribute");
}

int cuModuleLoadData(void** module, const void* image) {
  log("load " + std::string(static_cast<const char*>(image)) + " context " + std::to_string(context) + " mode " +
      std::to_string(capture_mode));
  *module = const_cast<void*>(image);
  return status("cuModuleLoadData");
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = new Function{static_cast<const char*>(module), name};
  return status("cuModuleGetFunction");
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
  const auto& [variant, name] = *static_cast<Function*>(function);
  std::string line = "launch " + variant;
  for (const unsigned number : {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes})
    line += " " + std::to_string(number);
  line += " " + std::to_string(reinterpret_cast<std::intptr_t>(stream)) + (extra ? " extra" : "");
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

int cuGetErrorString(int, const char** text) {
  *text = "an illegal memory access was encountered";
  return 0;
}
}
