// A request as Python sees it, and its answer.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "../backend.h"

namespace widefield {

// One tensor of a request or of an answer. bridge.py declares the same structs.
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

// A request and the state of its processing. Python has a pointer to the base class.
struct Work : Request {
  TRITONBACKEND_ModelInstance* instance = nullptr;
  TRITONBACKEND_Request* request = nullptr;  // null once it is answered
  std::vector<Tensor> tensors;
  std::deque<std::string> pieces;         // inputs that arrived in several buffers, joined
  std::string failure;                    // the message that `answer` returned
  uint64_t start = 0, compute_start = 0;  // nanoseconds

  int64_t batch_size() const { return tensors.empty() || tensors[0].rank == 0 ? 1 : tensors[0].shape[0]; }
};

inline Work& work_of(Request* request) { return static_cast<Work&>(*request); }

// Reads the request's inputs. Returns false if that failed; the request is then answered.
bool read_request(Work& work);

// Sends the answer. Returns null, or an error message; the request then still needs an answer.
const char* answer(Work& work, const Tensor* outputs, uint64_t count);
void fail(Work& work, TRITONSERVER_ErrorCode code, const char* message);

}  // namespace widefield
