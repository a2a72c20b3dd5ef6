// Times the parts of the native kernel, for native_parts.py: lines "name<tab>least microseconds" of
// CPU time for a batch, in one thread, without the images' way to the lanes.

#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "network.h"

constexpr int kGroups = 128 / LANES;

double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
}

std::vector<std::string> order;
std::map<std::string, double> least;

void record(const std::string& name, double time) {
  if (least.emplace(name, time).second) order.push_back(name);
  least[name] = std::min(least[name], time);
}

// A call for each group of a batch.
template <class F>
__attribute__((noinline)) void timed(const std::string& name, F part) {
  const double start = now();
  for (int group = 0; group < kGroups; group++) part();
  record(name, now() - start);
}

void parts(Workspace& s, const Weights& w, float* gradient, vec weight) {
  auto name = [](const char* part, int layer) { return part + (" " + std::to_string(layer)); };
  timed("layer 1 and pooling",
        [&] { conv_pool(s.pool<0>(), w.bias(1), w.first.data(), s.pool<1>(), s.argmax<1>()); });
  each<2, N>([&]<int layer>() {
    timed(name("layer and pooling", layer), [&] { winograd_pool<layer>(s, w); });
  });
  timed(name("layer", N + 1), [&] { code_layer(s, w); });
  each<1, N>([&]<int i>() {
    constexpr int layer = N + 1 + i;
    timed(name("upsampling and layer", layer), [&] { upsample<i>(s, w); });
  });
  timed("loss", [&] { loss_and_gradient<false>(s, weight, gradient); });
  each_down<N, 1>([&]<int i>() {
    constexpr int layer = N + 1 + i;
    timed(name("box sum", layer),
          [&] { box_sum(s.up_gradient<i>(), std::get<i - 1>(s.box_sums)); });
    timed(name("input's gradient", layer), [&] { upsample_input_gradient<i>(s, w, gradient); });
  });
  each_down<N + 1, 3>([&]<int layer>() {
    timed(name("input's gradient", layer), [&] { unpooled_gradient<layer>(s, w, gradient); });
  });
  timed("input's gradient 2, kernel's 1", [&] { first_gradients(s, w, gradient); });
  each_down<kLayers, 2>([&]<int layer>() {
    timed(name("kernel's gradient", layer), [&] { kernel_gradient<layer>(s, s.room, gradient); });
  });
}

int main(int, char** arguments) {
  std::vector<float> parameters(kParameters), gradient(kParameters);
  auto number = [](int i) { return (i * 7919ll % 104729) / 104729.f; };  // in [0, 1)
  for (int i = 0; i < kParameters; i++) parameters[i] = 0.3f * (number(31 * i) - 0.45f);
  Workspace s;
  for (int r = 0; r < kImage.rows; r++)
    for (int k = 0; k < kRow; k++)
      for (int l = 0; l < LANES; l++)
        s.pool<0>().at(r, 0)[k][l] = s.target.at(r, 0)[k][l] = number((l * kPixels + k) * 31 + r);
  const vec weight = vec{} + 1.f / 128 / kPixels;
  for (int round = std::atoi(arguments[1]); round > 0; round--) {
    const double start = now();
    const Weights w(parameters.data());
    record("weights", now() - start);
    timed("all of a batch", [&] {
      encode(s, w), decode(s, w);
      loss_and_gradient<false>(s, weight, gradient.data());
      backward(s, w, gradient.data(),
               [&]<int layer>() { kernel_gradient<layer>(s, s.room, gradient.data()); });
    });
    parts(s, w, gradient.data(), weight);
  }
  for (const std::string& name : order) std::printf("%s\t%.1f\n", name.c_str(), least[name]);
}
