"""What the C++ backends share (backend.h), in a small program with a tritonserver of its own."""

import subprocess

import pytest
from preloaded import compile_program

from server.backends.build import HERE

PROGRAM = r"""
#include "%s/backend.h"

#include <cstdio>

struct TRITONSERVER_Error {} failure;
struct TRITONSERVER_Message {} message;
bool fails = false;
int deleted = 0;

TRITONSERVER_Error* TRITONBACKEND_ModelConfig(TRITONBACKEND_Model*, uint32_t, TRITONSERVER_Message** out) {
  *out = &message;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message*, const char** text, size_t* size) {
  if (fails) return &failure;
  *text = "{} and more";
  *size = 2;
  return nullptr;
}
TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message*) { return ++deleted, nullptr; }
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error*) { return "no memory"; }
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error*) {}

int main(int count, char**) {
  fails = count > 1;
  try {
    std::printf("%%s", widefield::model_config(nullptr).c_str());
  } catch (const std::runtime_error& error) {
    std::printf("%%s", error.what());
  }
  std::printf(", %%d deleted", deleted);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program(tmp_path_factory.mktemp("header"), PROGRAM % HERE)


@pytest.mark.parametrize(("arguments", "said"), [([], "{}"), (["fails"], "no memory")])
def test_a_models_config_is_deleted_whether_it_can_be_read_or_not(program, arguments, said):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == f"{said}, 1 deleted"
