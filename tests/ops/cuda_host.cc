// The kernels of cae_jax/ops/cuda on a CPU, with the same calls: THREADS threads for each block,
// which wait for each other where those of a GPU do, and one block after the other. With MAIN it is
// a program that runs all kernels and prints what they give, for the thread sanitizer.

#include <barrier>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "call.h"

#ifndef WITHOUT_BARRIERS
#define WITHOUT_BARRIERS 0  // 1 to see that the thread sanitizer misses them
#endif

struct Index {
  unsigned x = 0, y = 0;
};
static thread_local Index threadIdx;
static Index blockIdx, gridDim;
static float* memory;
static std::barrier<>* barrier;
static std::mutex alone;  // XLA makes calls at the same time

static inline float* shared() { return memory; }
static inline int thread() { return threadIdx.x; }
static inline void __syncthreads() {
  if (THREADS > 1 && !WITHOUT_BARRIERS) barrier->arrive_and_wait();
}
#define KERNEL static void
#define CONSTANT static

#ifdef SIDES
#include "soap.cu"
#else
#include "network.cu"
#endif

namespace {

template <size_t... i, class F>
void call_with(F kernel, const std::vector<Array>& arrays, std::index_sequence<i...>) {
  kernel(arrays[i]...);
}

template <class... Arrays>
void launch(void (*kernel)(Arrays...), const Call& call, int64_t blocks) {
  const std::lock_guard lock(alone);
  for (unsigned model = 0; model < call.models; model++)
    for (unsigned block = 0; block < blocks; block++) {
      blockIdx = {block, model}, gridDim = {unsigned(blocks), unsigned(call.models)};
      // What a kernel does not write before it reads it is no number.
      std::vector<float> floats(shared_bytes / 4, NAN);
      std::barrier<> all(THREADS);
      memory = floats.data(), barrier = &all;
      std::vector<std::thread> threads;
      for (unsigned thread = 0; thread < THREADS; thread++)
        threads.emplace_back([&, thread] {
          threadIdx = {thread, 0};
          call_with(kernel, call.arrays, std::index_sequence_for<Arrays...>());
        });
      for (auto& thread : threads) thread.join();
    }
}

ffi::Error Launch(std::string_view, std::string_view kernel, int64_t blocks, int64_t, int64_t,
                  ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  Call call;
  if (auto e = call.read(arguments, results); e.failure()) return e;
#define TRY(name) \
  if (kernel == #name) return launch(name, call, blocks), ffi::Error::Success();
#ifdef SIDES
  TRY(soap)
#else
  TRY(bce_and_grad)
  TRY(mse_and_grad)
  TRY(bce_of_batch)
  TRY(mse_of_batch)
  TRY(sum)
  TRY(losses_of)
  TRY(encode_images)
  TRY(decode_codes)
#endif
  return ffi::Error::InvalidArgument("no such kernel");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_launch, Launch, with_call(ffi::Ffi::Bind()));

#ifdef MAIN
static std::vector<float> draw(size_t n, float scale) {
  static unsigned state = 1;
  std::vector<float> values(n);
  for (float& value : values) {
    state = state * 1664525 + 1013904223;
    value = scale * (state >> 8) / (1 << 24);
  }
  return values;
}
static Array array(std::vector<float>& values, int64_t rows) { return {values.data(), rows, 0, 0}; }
template <class F>
static void call(F kernel, std::vector<Array> arrays, int blocks) {
  Call call;
  call.arrays = arrays;
  launch(kernel, call, blocks);
}
static void print(const std::vector<float>& values) {
  for (float value : values) std::printf("%.9g\n", value);
}

#ifdef SIDES
int main() {
  constexpr int kKernels = 2, kSizes[] = {kTensor, kTensor, kSides[0] * kSides[0],
                                          kSides[1] * kSides[1], kSides[2] * kSides[2]};
  std::vector<float> numbers{0.95f, 0.9f, 0.1f, 0.99f, 0.01f, 1e-8f, 0.1f, 0.01f, 1.f};
  std::vector<std::vector<float>> all{draw(kKernels * kTensor, 1)};
  for (int i : {0, 1, 2, 3, 4, 2, 3, 4}) all.push_back(draw(kKernels * kSizes[i], 1));
  all.push_back(draw(kKernels * kTensor, 0));
  std::vector<Array> arrays{array(numbers, 1)};
  for (auto& values : all) arrays.push_back(array(values, kKernels));
  for (int i = 1; i < 9; i++) arrays.push_back(arrays[1 + i]);  // the state is replaced
  call(soap, arrays, kKernels);
  for (auto& values : all) print(values);
}
#else
int main() {
  constexpr int kImages = 5, kBlocks = 2, kCode = plane_size(0, N) * plane_size(1, N) * kWidths[N];
  auto weights = draw(kWeights, 0.2f), images = draw(kImages * kPixels, 1);
  auto importance = draw(kImages, 1), codes = draw(kImages * kCode, 0);
  auto rows = draw(kBlocks * kGradient, 0), total = draw(kGradient, 0);
  auto losses = draw(2 * kImages, 0), logits = draw(kImages * kPixels, 0);
  const Array w = array(weights, 1), x = array(images, kImages), y = array(importance, kImages);
  const Array z = array(codes, kImages), partial = array(rows, kBlocks);
  call(encode_images, {w, x, z}, kImages);
  call(decode_codes, {w, z, array(logits, kImages)}, kImages);
  call(losses_of, {w, x, x, array(losses, kImages)}, kImages);
  call(bce_and_grad, {w, x, x, y, partial}, kBlocks);
  call(mse_and_grad, {w, x, x, y, partial}, kBlocks);
  std::vector<int> indices{3, 1, kImages, 0};
  call(bce_of_batch, {w, x, {indices.data(), 4, 0, 0}, partial}, kBlocks);
  call(sum, {partial, array(total, 1)}, (kGradient + 31) / 32);
  for (const auto& values : {codes, logits, losses, total}) print(values);
}
#endif
#endif
