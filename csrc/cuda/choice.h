// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The rows of nag_kernels/gpu_choices.csv as choice.cpp reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nag {

constexpr const char* kForms[] = {"", "text", "branches",
                                  "cluster"};  // "": the plan that comes first is not of this library

struct Choice {
  int64_t chip, shared, size_to, length_to, text_to;  // as in gpu.Choice; a limit of 0 is none
  int64_t form;                                       // an index of kForms
};

// Six numbers a row.
inline std::vector<Choice> read_choices(const std::vector<int64_t>& rows) {
  std::vector<Choice> choices;
  for (size_t i = 0; i + 6 <= rows.size(); i += 6) {
    choices.push_back({rows[i], rows[i + 1], rows[i + 2], rows[i + 3], rows[i + 4], rows[i + 5]});
  }
  return choices;
}

// Of the first row that fits among those of the newest chip that is not newer than this one: gpu_table.find.
inline const char* first_form(const std::vector<Choice>& choices, int64_t chip, int64_t length, int64_t size,
                              int64_t text, int64_t shared) {
  const auto within = [](int64_t limit, int64_t value) { return limit == 0 || value <= limit; };
  const Choice* found = nullptr;
  for (const Choice& row : choices) {
    if (row.chip <= chip && row.shared == (shared > 0 ? 1 : 0) && within(row.size_to, size) &&
        within(row.length_to, length) && within(row.text_to, text) && (found == nullptr || row.chip > found->chip)) {
      found = &row;
    }
  }
  return kForms[found == nullptr ? 0 : found->form];
}

}  // namespace nag
