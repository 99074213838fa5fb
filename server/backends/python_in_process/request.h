// A request of tritonserver's as Python sees it, and its answer.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "../backend.h"

namespace widefield {

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

// A request from its tensors to its answer. Python sees the first part, and names a request by it.
struct Work : Request {
  TRITONBACKEND_ModelInstance* instance = nullptr;
  TRITONBACKEND_Request* request = nullptr;  // null when it was answered
  std::vector<Tensor> tensors;
  std::deque<std::string> pieces;         // tensors that came in several
  std::string failure;                    // of the last answer
  uint64_t start = 0, compute_start = 0;  // nanoseconds

  int64_t batch_size() const { return tensors.empty() || tensors[0].rank == 0 ? 1 : tensors[0].shape[0]; }
};

inline Work& work_of(Request* request) { return static_cast<Work&>(*request); }

// Whether Python is to see the request; where not, it has its answer.
bool read_request(Work& work);

// Null, or why it could not be sent: the request still needs an answer then.
const char* answer(Work& work, const Tensor* outputs, uint64_t count);
void fail(Work& work, TRITONSERVER_ErrorCode code, const char* message);

}  // namespace widefield
