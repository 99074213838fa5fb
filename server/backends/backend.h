// Code that the backends share: conversion of tritonserver's errors and exceptions, a model's config and folder.
#pragma once

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

#include "tritonbackend.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace widefield {

std::string message_of(const std::exception& error);  // defined by each backend

// Throws `error` as a `std::runtime_error`, unless it is null.
inline void check(TRITONSERVER_Error* error) {
  if (!error) return;
  const std::string message = TRITONSERVER_ErrorMessage(error);
  TRITONSERVER_ErrorDelete(error);
  throw std::runtime_error(message);
}

inline void log_failure(TRITONSERVER_Error* error) {
  if (!error) return;
  TRITONSERVER_LogMessage(LOG_ERROR, __FILE__, __LINE__, TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
}

// Runs `body`, and converts an exception into a tritonserver error.
template <class Body>
TRITONSERVER_Error* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(ERROR_INTERNAL, message_of(error).c_str());
  }
}

inline uint64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline void check_api_version() {
  uint32_t major = 0, minor = 0;
  check(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major != 1)
    throw std::runtime_error("tritonserver's backend API is " + std::to_string(major) + "; this backend needs 1");
}

inline std::string model_config(TRITONBACKEND_Model* model) {  // JSON
  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  const std::unique_ptr<TRITONSERVER_Message, TRITONSERVER_Error* (*)(TRITONSERVER_Message*)> owner(
      message, TRITONSERVER_MessageDelete);
  const char* text = nullptr;
  size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &text, &size));
  return {text, size};
}

inline std::string version_folder(TRITONBACKEND_Model* model) {
  int artifact = 0;
  const char* location = nullptr;
  uint64_t version = 0;
  check(TRITONBACKEND_ModelRepository(model, &artifact, &location));
  check(TRITONBACKEND_ModelVersion(model, &version));
  return std::string(location) + "/" + std::to_string(version);
}

inline std::set<std::string> requested_outputs(TRITONBACKEND_Request* request) {
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

inline std::string_view input_buffer(TRITONBACKEND_Input* input, uint32_t index, const std::string& name) {
  auto memory = MEMORY_CPU;
  int64_t memory_id = 0;
  const void* data = nullptr;
  uint64_t size = 0;
  check(TRITONBACKEND_InputBuffer(input, index, &data, &size, &memory, &memory_id));
  if (memory == MEMORY_GPU) throw std::invalid_argument("input '" + name + "' lies in GPU memory");
  return {static_cast<const char*>(data), size};
}

// Copies `bytes` of host memory into an output of the response.
inline void write_output(TRITONBACKEND_Response* response, const std::string& name, TRITONSERVER_DataType type,
                         const int64_t* shape, uint32_t rank, const void* data, uint64_t bytes) {
  TRITONBACKEND_Output* output = nullptr;
  check(TRITONBACKEND_ResponseOutput(response, &output, name.c_str(), type, shape, rank));
  void* buffer = nullptr;
  auto memory = MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &memory_id));
  if (memory == MEMORY_GPU) throw std::invalid_argument("output '" + name + "' is wanted in GPU memory");
  if (bytes > 0) std::memcpy(buffer, data, bytes);
}

template <class State, class Handle>
State* state_of(Handle* handle, TRITONSERVER_Error* (*get)(Handle*, void**)) {
  void* state = nullptr;
  check(get(handle, &state));
  return static_cast<State*>(state);
}

}  // namespace widefield
