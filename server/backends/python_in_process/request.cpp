#include "request.h"

namespace widefield {
namespace {

// Releases the request before sending its answer: a client that has the answer may free the shared memory that held the
// request, and this thread, which has a low priority, might release it much later.
void send(
    Work& work, TRITONBACKEND_Response* response, TRITONSERVER_Error* error, uint64_t computed, bool counts = true) {
  if (counts)
    log_failure(TRITONBACKEND_ModelInstanceReportStatistics(
        work.instance, work.request, !error, work.start, work.compute_start, computed, now_ns()));
  log_failure(TRITONBACKEND_RequestRelease(work.request, kReleaseAll));
  work.request = nullptr;
  log_failure(TRITONBACKEND_ResponseSend(response, kResponseFinal, error));
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
  if (buffers > 1) joined.reserve(tensor.bytes);
  for (uint32_t buffer = 0; buffer < buffers; ++buffer) {
    const auto piece = input_buffer(input, buffer, tensor.name);
    tensor.data = piece.data();
    if (buffers > 1) joined.append(piece);
  }
  if (buffers > 1) tensor.data = work.pieces.emplace_back(std::move(joined)).data();
  return tensor;
}

}  // namespace

void fail(Work& work, TRITONSERVER_ErrorCode code, const char* message) {
  TRITONBACKEND_Response* response = nullptr;
  if (auto* error = TRITONBACKEND_ResponseNew(&response, work.request)) {
    log_failure(error);
    log_failure(TRITONBACKEND_RequestRelease(work.request, kReleaseAll));
    work.request = nullptr;
    return;
  }
  auto* error = TRITONSERVER_ErrorNew(code, message);
  send(work, response, error, now_ns(), code != ERROR_CANCELLED);  // a cancelled request is not the backend's failure
  TRITONSERVER_ErrorDelete(error);
}

const char* answer(Work& work, const Tensor* outputs, uint64_t count) {
  TRITONBACKEND_Response* response = nullptr;
  try {
    const auto requested = requested_outputs(work.request);
    check(TRITONBACKEND_ResponseNew(&response, work.request));
    const uint64_t computed = now_ns();
    for (const Tensor* output = outputs; output < outputs + count; ++output)
      if (requested.count(output->name))
        write_output(response, output->name, static_cast<TRITONSERVER_DataType>(output->type), output->shape,
                     output->rank, output->data, output->bytes);
    send(work, response, nullptr, computed);
    return nullptr;
  } catch (const std::exception& error) {
    work.failure = error.what();
    if (response) log_failure(TRITONBACKEND_ResponseDelete(response));
    return work.failure.c_str();
  }
}

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

}  // namespace widefield
