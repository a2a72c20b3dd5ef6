// Gradients by many threads, for the thread sanitizer, without XLA: the bits of one thread.

#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "threads.h"

struct Threads {
  int64_t threads;
  std::vector<std::thread> running;

  explicit Threads(int64_t threads) : threads(threads) {}
  ~Threads() {
    for (std::thread& thread : running) thread.join();
  }
  int64_t num_threads() const { return threads; }
  void Schedule(std::function<void()> task) { running.emplace_back(task); }
};

constexpr int kGroups = 5;

// Numbers in [0, 1) of a group, which repeat with no short period.
float number(int64_t i) { return (i * 7919 % 104729) / 104729.f; }

std::vector<float> gradients(const Weights& w, int64_t threads) {
  std::vector<float> all(kGroups * kParameters);
  Threads pool(threads);
  for_groups(pool, kGroups, threads, [&](const Group& group, Workspace& s) {
    for (int r = 0; r < kImage.rows; r++)
      for (int k = 0; k < kRow; k++)
        for (int l = 0; l < LANES; l++)
          s.pool<0>().at(r, 0)[k][l] = s.target.at(r, 0)[k][l] =
              number(((group.number * LANES + l) * kImage.rows + r) * kRow + k);
    float* gradient = all.data() + group.number * kParameters;
    encode(s, w);
    decode(s, w);
    loss_and_gradient<false>(s, vec{} + 1.f / kPixels, gradient);
    group.backward(s, w, gradient);
  });
  return all;
}

int main() {
  std::vector<float> parameters(kParameters);
  for (int i = 0; i < kParameters; i++) parameters[i] = 0.4f * (number(31 * i) - 0.4f);
  const Weights w(parameters.data());
  const std::vector<float> expected = gradients(w, 1);
  int other = 0;
  for (int64_t threads : {2, 4, 10, 16})
    for (int round = 0; round < 10; round++) {
      const std::vector<float> all = gradients(w, threads);
      other += std::memcmp(all.data(), expected.data(), 4 * all.size()) != 0;
    }
  double size = 0;
  for (float value : expected) size += value * value;
  std::printf("%d of 40 differ, %g\n", other, size);
  return other > 0 || !(size > 0);
}
