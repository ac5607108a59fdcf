// SPDX-License-Identifier: Apache-2.0
// Errors that say what was expected and what came, and nothing of where this file was compiled.
// In Python std::invalid_argument is a ValueError and std::out_of_range an IndexError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fastvq {

template <class Error = std::invalid_argument, class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace fastvq
