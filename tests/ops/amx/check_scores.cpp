// Runs the AMX score kernels on emulated tiles and compares them with float64 sums. Prints one line
// for each disagreement and exits with their number.
#include "buffer.h"
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using namespace fastvq;

namespace {

int failures = 0;

void expect(bool good, const char* what, int64_t depth, int64_t row) {
  if (good) return;
  std::printf("%s is wrong at depth %ld, row %ld\n", what, static_cast<long>(depth),
              static_cast<long>(row));
  ++failures;
}

float round_bfloat16(float value) { return static_cast<float>(c10::BFloat16(value)); }

void compare_at(int64_t depth, int64_t count) {
  const ScoreKernels& pass = kAmxScores;
  const int64_t stride = (depth + 7) / 8 * 8, rows = pass.panel_rows, words = pass.words(depth);
  const int64_t blocks = (count + pass.block_codes - 1) / pass.block_codes;
  const int64_t padded = blocks * pass.block_codes, groups = padded / kGroupCodes;
  std::mt19937 random(static_cast<unsigned>(depth));
  std::normal_distribution<float> normal;
  std::vector<float> raw((rows + 32) * stride + 32), codes(count * stride), shift(depth);
  for (auto* values : {&raw, &codes, &shift}) for (float& v : *values) v = normal(random);
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t d = depth; d < stride; ++d) codes[k * stride + d] = 0.0f;
  }
  // bfloat16 products need no lengths
  const std::vector<float> row_scale(rows, 2.0f), row_length(rows, 0.0f);
  const std::vector<double> scale(count, 1.0), offset(count, 0.0), centre(stride, 0.0);
  const CodeView<float> view{codes.data(), stride, stride, count, scale.data(), offset.data()};

  Buffer<float> panel(rows * words), loss(rows), packed(padded * words), bias(padded);
  std::vector<double> squares(padded), errors(padded);
  pass.pack_rows(raw.data(), stride, depth, shift.data(), row_scale.data(), row_length.data(),
                 panel.get(), loss.get());
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = b * pass.block_codes;
    pass.pack_codes(view, depth, centre.data(), 1.0, k, packed.get() + k * words, &squares[k],
                    &errors[k]);
  }
  for (int64_t k = 0; k < padded; ++k) {
    bias[k] = k < count ? static_cast<float>(-squares[k] / 2)
                        : -std::numeric_limits<float>::infinity();
  }
  Buffer<float> best(rows * kTrackers), second(rows * kTrackers), runner(rows), rest(rows);
  Buffer<int32_t> group(rows * kTrackers), tracker(rows);
  std::fill_n(second.get(), rows * kTrackers, -std::numeric_limits<float>::infinity());
  std::fill_n(best.get(), rows * kTrackers, -std::numeric_limits<float>::infinity());
  std::fill_n(tracker.get(), rows, 0);
  const PanelState state{best.get(), second.get(), group.get()};
  pass.score(panel.get(), words, packed.get(), bias.get(), blocks, 0, state);
  pass.summarize(state, {tracker.get(), runner.get(), rest.get()});

  std::vector<float> threshold(rows);
  std::vector<int64_t> wanted(rows), listed(rows);
  const double tolerance = 1e-5 * static_cast<double>(depth);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> score(groups, -std::numeric_limits<double>::infinity());
    double lost = 0.0;
    for (int64_t k = 0; k < count; ++k) {
      double sum = bias[k];
      for (int64_t d = 0; d < depth; ++d) {
        const float x = (raw[r * stride + d] - shift[d]) * 2.0f;
        sum += static_cast<double>(round_bfloat16(x)) * round_bfloat16(codes[k * stride + d]);
        if (k == 0) lost += std::pow(static_cast<double>(x) - round_bfloat16(x), 2);
      }
      score[k / kGroupCodes] = std::max(score[k / kGroupCodes], sum);
    }
    expect(std::abs(loss[r] - lost) <= 1e-5 * lost, "what rounding took", depth, r);
    std::vector<double> bests(kTrackers, -std::numeric_limits<double>::infinity()), seconds = bests;
    const int64_t block_groups = pass.block_codes / kGroupCodes;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t t = g / block_groups % kTrackers;
      seconds[t] = std::max(seconds[t], std::min(bests[t], score[g]));
      bests[t] = std::max(bests[t], score[g]);
    }
    const auto near = [&](double a, double b) { return a == b || std::abs(a - b) <= tolerance; };
    for (int64_t t = 0; t < kTrackers; ++t) {
      const int64_t i = t * rows + r;
      expect(near(best[i], bests[t]), "the best score", depth, r);
      expect(near(second[i], seconds[t]), "the second score", depth, r);
      if (std::isfinite(bests[t])) {
        expect(near(score[group[i]], bests[t]), "the best group", depth, r);
      }
    }
    const double top = *std::max_element(bests.begin(), bests.end());
    expect(near(best[tracker[r] * rows + r], top), "the tracker", depth, r);
    expect(near(rest[r], *std::max_element(seconds.begin(), seconds.end())), "the rest", depth, r);
    std::nth_element(bests.begin(), bests.begin() + 1, bests.end(), std::greater<>());
    expect(near(runner[r], bests[1]), "the runner-up", depth, r);
    threshold[r] = static_cast<float>(top - 3.0);
    for (double s : score) wanted[r] += s >= threshold[r] + tolerance;
  }
  std::vector<Suspect> suspects(rows * groups);
  const int64_t found = pass.collect(panel.get(), words, packed.get(), bias.get(), blocks, 0,
                                     threshold.data(), suspects.data());
  for (int64_t i = 0; i < found; ++i) ++listed[suspects[i].row];
  for (int64_t r = 0; r < rows; ++r) {
    expect(listed[r] >= wanted[r] && listed[r] <= wanted[r] + 1, "the list of groups", depth, r);
  }
}

}  // namespace

int main() {
  for (int64_t depth : {1, 2, 31, 32, 33, 64, 100}) compare_at(depth, 300);
  compare_at(64, 1);
  std::puts("checked");
  return failures;
}
