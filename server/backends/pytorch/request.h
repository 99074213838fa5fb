// Reads a request's inputs and sends its answer.
#pragma once

#include <ATen/ATen.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "settings.h"

namespace widefield {

// An error that the sender of the request made.
struct RequestError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// One request of an execute call and the state of its processing.
struct Work {
  TRITONBACKEND_Request* request;
  TRITONBACKEND_Response* response = nullptr;
  std::vector<at::Tensor> inputs, outputs;  // in config order
  std::string error;
  TRITONSERVER_ErrorCode code = ERROR_INTERNAL;

  bool ready() const { return error.empty(); }
  int64_t batch_size(const Settings& settings) const {
    return settings.max_batch_size > 0 && !inputs.empty() ? inputs[0].size(0) : 1;
  }
};

// Runs `body`; an exception becomes the request's error.
template <class Body>
void attempt(Work& work, Body body) {
  try {
    body();
  } catch (const RequestError& error) {
    work.error = error.what();
    work.code = ERROR_INVALID_ARG;
  } catch (const std::exception& error) {
    work.error = message_of(error);
  }
}

void read_inputs(Work& work, const Settings& settings);
void answer(Work& work, const Settings& settings);
void send(Work& work);

}  // namespace widefield
