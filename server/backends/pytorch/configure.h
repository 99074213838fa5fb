// A config's settings put into effect: for the process, and for each thread that computes.
#pragma once

#include <optional>

#include "settings.h"

namespace widefield {

// PyTorch's process-wide switches as the config sets them; what it does not name stays as LibTorch has it.
void configure_process(const Settings& settings);

void set_thread_count(int count);  // of the calling thread's operators

// The calling thread computes with this number of threads, or LibTorch's own: each instance has a thread of its own.
void configure_thread(const Settings& settings, std::optional<int> threads);

}  // namespace widefield
