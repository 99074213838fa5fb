// Applies a config's settings to the process and to each thread that computes.
#pragma once

#include <optional>

#include "settings.h"

namespace widefield {

// Sets PyTorch's process-wide switches; those that the config does not name keep LibTorch's defaults.
void configure_process(const Settings& settings);

void set_thread_count(int count);  // of the calling thread's operators

// Sets the number of threads (default: LibTorch's) with which the calling thread, one for each instance, computes.
void configure_thread(const Settings& settings, std::optional<int> threads);

}  // namespace widefield
