#include "request.h"

#include <algorithm>
#include <cstring>

#include "model.h"

namespace widefield {

std::string message_of(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  const std::string message = c10_error ? c10_error->what_without_backtrace() : error.what();
  // The error itself (`ValueError: ...`) follows TorchScript's traceback and its indented code. It is put first, since
  // the client and the launcher show one line.
  auto reason = message.rfind("<--- HERE\n");
  if (reason == std::string::npos) return message;
  do {
    reason = std::min(message.find('\n', reason), message.size() - 1) + 1;
  } while (message[reason] == ' ');
  if (reason == message.size()) return message;
  return message.substr(reason, message.find_last_not_of('\n') + 1 - reason) + "\n" + message.substr(0, reason);
}

namespace {

// Returns an input as a tensor: a view if it is one aligned buffer in host memory, else a copy.
at::Tensor read_input(TRITONBACKEND_Request* request, const TensorSetting& setting) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInput(request, setting.name.c_str(), &input));
  const int64_t* shape = nullptr;
  uint32_t dims = 0, buffers = 0;
  uint64_t bytes = 0;
  check(TRITONBACKEND_InputProperties(input, nullptr, nullptr, &shape, &dims, &bytes, &buffers));
  if (dims != setting.rank)  // the server treats a batch of 0 as no batch
    throw RequestError("input '" + setting.name + "' has no batch: the first number of its shape must be 1 or more");
  const auto options = at::TensorOptions(setting.scalar);
  const at::IntArrayRef sizes(shape, dims);
  if (static_cast<uint64_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize() != bytes)
    throw RequestError("input '" + setting.name + "' has " + std::to_string(bytes) +
                       " bytes, which do not fill its shape");
  if (buffers == 1) {
    const char* data = input_buffer(input, 0, setting.name).data();
    if (reinterpret_cast<uintptr_t>(data) % options.dtype().itemsize() == 0)
      return at::from_blob(const_cast<char*>(data), sizes, options);
  }
  at::Tensor tensor = at::empty(sizes, options);
  auto* target = static_cast<char*>(tensor.data_ptr());
  for (uint32_t index = 0; index < buffers; ++index) {
    const auto piece = input_buffer(input, index, setting.name);
    std::memcpy(target, piece.data(), piece.size());
    target += piece.size();
  }
  return tensor;
}

void write_outputs(TRITONBACKEND_Response* response, const Work& work, const Settings& settings) {
  const auto requested = requested_outputs(work.request);
  for (size_t i = 0; i < work.outputs.size(); ++i) {
    const auto& setting = settings.outputs[i];
    const at::Tensor& tensor = work.outputs[i];
    if (requested.count(setting.name))
      write_output(response, setting.name, setting.type, tensor.sizes().data(), tensor.dim(), tensor.const_data_ptr(),
                   tensor.nbytes());
  }
}

}  // namespace

void read_inputs(Work& work, const Settings& settings) {
  bool cancelled = false;
  check(TRITONBACKEND_RequestIsCancelled(work.request, &cancelled));
  if (cancelled) {
    work.code = ERROR_CANCELLED;
    throw std::runtime_error("the request was cancelled");
  }
  for (const auto& setting : settings.inputs) work.inputs.push_back(read_input(work.request, setting));
}

void answer(Work& work, const Settings& settings) {
  if (auto* error = TRITONBACKEND_ResponseNew(&work.response, work.request)) return log_failure(error);
  if (work.ready()) attempt(work, [&] { write_outputs(work.response, work, settings); });
}

void send(Work& work) {
  if (!work.response) return;
  auto* error = work.ready() ? nullptr : TRITONSERVER_ErrorNew(work.code, work.error.c_str());
  log_failure(TRITONBACKEND_ResponseSend(work.response, kResponseFinal, error));
  if (error) TRITONSERVER_ErrorDelete(error);
}

}  // namespace widefield
