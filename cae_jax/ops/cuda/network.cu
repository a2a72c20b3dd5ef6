// The convolutional autoencoder on a GPU: losses, gradients, codes and logits, one block an image.
//
// A block keeps all activations of its image in shared memory and goes through the network in
// phases, between which its threads wait for each other. Within a phase each value has one thread,
// which adds in a written order, and blocks share nothing: the results have the same bits on any
// schedule. `sum` then adds what the blocks wrote, in the order of their numbers.
//
// Three identities keep arithmetic and memory small:
//   - A convolution with pooling computes the 2x2 outputs of a pooling window together and keeps
//     the maximum and its place.
//   - Upsampling and then convolving gives four outputs for each pixel before it, from a 3x3 window
//     with 16 sums of the 9 weights (`_pack` sums them): 16 products instead of 36.
//   - The gradient of an activation is stored in its place, since the derivative of the ReLU is the
//     last to ask for the activation.
//
// Sizes are macros, from cae_jax/models/topology.py: CHANNELS of the images and FEATURES of the
// encoder's convolutions; ENCODER_ROWS and ENCODER_COLUMNS of the images and after each pooling;
// DECODER_ROWS and DECODER_COLUMNS of the code and after each upsampling layer. Besides: THREADS of
// a block, and SHARED_BYTES, the shared memory that it may have.

#include "kernel.h"

namespace {

// N poolings: the layers 1 to N with pooling, N + 1, and N + 2 to kLayers with upsampling.
constexpr int kWidths[] = {CHANNELS, FEATURES};
constexpr int N = sizeof(kWidths) / sizeof(int) - 1, kLayers = 2 * N + 1;
constexpr int kEncoder[2][N + 1] = {{ENCODER_ROWS}, {ENCODER_COLUMNS}};
constexpr int kDecoder[2][N + 1] = {{DECODER_ROWS}, {DECODER_COLUMNS}};
constexpr int kPixels = kEncoder[0][0] * kEncoder[1][0] * CHANNELS;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int greater(int a, int b) { return a > b ? a : b; }
constexpr int up_to(int n, int step) { return (n + step - 1) / step * step; }
// Values that are read together: as many as divide their number, at most 4.
constexpr int together(int n) { return n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1; }

// Channels after a layer; before it those of the layer before.
constexpr int channels(int layer) {
  return kWidths[layer <= N ? layer : layer == N + 1 ? N : kLayers - layer];
}
constexpr int taps(int layer) { return layer <= N + 1 ? 9 : 16; }
// The weights as the kernels take them: for each layer the bias, then [taps, in, out]; each begins
// at a multiple of 4.
constexpr int bias_at(int layer) {
  if (layer == 1) return 0;
  const int pairs = channels(layer - 2) * channels(layer - 1);
  return bias_at(layer - 1) + up_to(channels(layer - 1), 4) + up_to(taps(layer - 1) * pairs, 4);
}
constexpr int weights_at(int layer) { return bias_at(layer) + up_to(channels(layer), 4); }
constexpr int kWeights = bias_at(kLayers + 1);
// The gradient: the loss, then for each layer that of the bias and of the kernel [3, 3, in, out].
constexpr int gradient_size(int layer) { return channels(layer) * (9 * channels(layer - 1) + 1); }
constexpr int gradient_at(int layer) {
  return layer == 1 ? 1 : gradient_at(layer - 1) + gradient_size(layer - 1);
}
constexpr int kGradient = gradient_at(kLayers + 1);

// Planes in shared memory: 0 to N the image and after each pooling; N + 1 to 2 N + 1 after layer
// N + 1 and after each upsampling layer, the last of them the logits.
constexpr int plane_size(int axis, int i) {
  if (i <= N) return kEncoder[axis][i];
  return smaller(kDecoder[axis][i - N - 1], i == 2 * N + 1 ? kEncoder[axis][0] : 1 << 30);
}
// 1 where a layer with upsampling drops the border of its output, so that it convolves 'valid'.
constexpr int dropped(int axis, int i) {
  return i <= N + 1 ? 0 : (2 * kDecoder[axis][i - N - 2] - kDecoder[axis][i - N - 1]) / 2;
}
constexpr int plane_channels(int i) { return i <= N ? kWidths[i] : channels(i); }

// An array [channels][rows][columns] with a border of zeros, wide enough for each window of 4x4
// whose rows and columns begin at an odd number, where they end beyond the last one too. Lengths
// are such that windows begin at even places, and 16 channels in 16 different pairs of banks.
template <int i>
struct Plane {
  static constexpr int kRows = plane_size(0, i), kColumns = plane_size(1, i);
  static constexpr int kChannels = plane_channels(i), kPositions = kRows * kColumns;
  static constexpr int kTop = 1 + dropped(0, i), kLeft = 1 + dropped(1, i);
  static constexpr int kStride = up_to(kColumns, 2) + 2 * kLeft;
  static constexpr int kArea = up_to(kRows, 2) * kStride + 2 * kTop * kStride;
  static constexpr int kChannel = kArea + (kArea % 4 == 2 ? 0 : 2);
  static constexpr int kSize = kChannels * kChannel;
  static constexpr int at() {
    if constexpr (i == 0)
      return 0;
    else
      return Plane<i - 1>::at() + Plane<i - 1>::kSize;
  }
  static float* of(float* s, int channel, int row, int column) {
    return s + at() + channel * kChannel + (row + kTop) * kStride + column + kLeft;
  }
};
template <int i>
using Pool = Plane<i>;
template <int i>
using Up = Plane<N + 1 + i>;

// Where the pooling after a layer took its maximum, 0 to 3: bytes [features][positions].
template <int layer>
constexpr int argmax_at() {
  if constexpr (layer == 1)
    return 0;
  else
    return argmax_at<layer - 1>() + Pool<layer - 1>::kChannels * Pool<layer - 1>::kPositions;
}

// The gradient of a layer's convolution before its pooling, in the place of the decoder's planes,
// which are not needed any more. For the layer without pooling it is its plane.
template <int layer>
struct Before {
  using X = Pool<layer - 1>;
  static constexpr int kStride = up_to(X::kColumns, 2) + 2, kRows = up_to(X::kRows, 2) + 2;
  static constexpr int kChannel = kRows * kStride + (kRows * kStride % 4 == 2 ? 0 : 2);
  static constexpr int kSize = channels(layer) * kChannel;
  static float* of(float* s, int channel, int row, int column) {
    return s + Up<0>::at() + channel * kChannel + (row + 1) * kStride + column + 1;
  }
};
template <int layer>
constexpr int planes_end() {
  if constexpr (layer > N)
    return Up<N>::at() + Up<N>::kSize;
  else
    return greater(planes_end<layer + 1>(), layer == 1 ? 0 : Up<0>::at() + Before<layer>::kSize);
}

// Tasks of a layer's gradient with respect to its kernel, see `backward`, and positions to sum
// over.
constexpr int tasks_of(int layer) {
  const int in = channels(layer - 1);
  return (layer <= N + 1 ? in : in / together(in)) * channels(layer);
}
constexpr int positions_of(int layer) {
  const int i = layer <= N + 1 ? layer : layer - 1;
  return plane_size(0, i) * plane_size(1, i);
}
// Scratch with which each thread has a task in each layer.
constexpr int wanted_scratch() {
  int most = 0;
  for (int layer = 1; layer <= kLayers; layer++)
    most = greater(most,
                   gradient_size(layer) * smaller(THREADS / tasks_of(layer), positions_of(layer)));
  return most;
}

// Shared memory, in floats: the planes, the places of the maxima, the weights if they fit, and what
// is left of the wanted scratch for partial sums. The registers of a block leave no room for a
// second one on a multiprocessor.
constexpr int kSumColumns = 32, kSumParts = 16;  // of a block of the kernel `sum`
constexpr int kLeastScratch = greater(THREADS + 32, kSumColumns* kSumParts);
constexpr int kArgmaxAt = up_to(planes_end<1>(), 4);
constexpr int kWeightsAt = kArgmaxAt + up_to(argmax_at<N + 1>(), 16) / 4;
constexpr int kLeft = SHARED_BYTES / 4 - kWeightsAt - kLeastScratch;
static_assert(kLeft >= 0, "the shared memory of a block does not hold the activations");
constexpr bool kWeightsInShared = kWeights <= kLeft;
constexpr int kScratchAt = kWeightsAt + (kWeightsInShared ? up_to(kWeights, 4) : 0);
constexpr int kScratch =
    greater(kLeastScratch, smaller(SHARED_BYTES / 4 - kScratchAt, wanted_scratch()));
constexpr int kShared = kScratchAt + kScratch;

struct Block {
  float* planes;
  float* scratch;
  unsigned char* argmaxes;
  const float* weights;

  template <int layer>
  const float* bias() const {
    return weights + bias_at(layer);
  }
  template <int layer>
  const float* kernel() const {
    return weights + weights_at(layer);
  }
  template <int layer>
  unsigned char& argmax(int feature, int position) const {
    return argmaxes[argmax_at<layer>() + feature * Pool<layer>::kPositions + position];
  }
};

template <int n>
struct alignas(4 * n) Values {
  float of[n];
};
template <int n>
inline Values<n> load(const float* from) {
  return *reinterpret_cast<const Values<n>*>(from);
}
// Channels that a thread computes together, fewer where not every thread would have work.
constexpr int channels_together(int n, int positions) {
  int block = together(n);
  while (block > 1 && positions * (n / block) < THREADS) block /= 2;
  return block;
}

// Rows of 4 values that begin at an even place.
template <int rows>
inline void load_window(const float* from, int stride, float (&window)[rows][4]) {
#pragma unroll
  for (int a = 0; a < rows; a++)
#pragma unroll
    for (int b = 0; b < 4; b += 2) {
      const Values<2> two = load<2>(from + a * stride + b);
      window[a][b] = two.of[0], window[a][b + 1] = two.of[1];
    }
}

// The comparisons are such that a value that is not a number stays one.
inline float relu(float x) { return x <= 0.f ? 0.f : x; }

template <int first, int last, class F>
inline void each(F f) {
  if constexpr (first <= last) f.template operator()<first>(), each<first + 1, last>(f);
}
template <int last, int first, class F>
inline void each_down(F f) {
  if constexpr (first <= last) f.template operator()<last>(), each_down<last - 1, first>(f);
}

// The sum of a value of each thread, in all of them.
inline float block_sum(float value, float* scratch) {
  scratch[thread()] = value;
  __syncthreads();
  for (int i = thread(); i < 32; i += THREADS) {
    float sum = 0.f;
    for (int k = i; k < THREADS; k += 32) sum += scratch[k];
    scratch[THREADS + i] = sum;
  }
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < 32; i++) sum += scratch[THREADS + i];
  __syncthreads();
  return sum;
}

// --- Forward ------------------------------------------------------------------------------------

// A layer with its pooling.
template <int layer>
void conv_pool(const Block& block) {
  using X = Pool<layer - 1>;
  using Y = Pool<layer>;
  constexpr int C = X::kChannels, F = Y::kChannels, n = channels_together(F, Y::kPositions);
  for (int task = thread(); task < Y::kPositions * (F / n); task += THREADS) {
    const int f = task % (F / n) * n, p = task / (F / n), r = p / Y::kColumns, q = p % Y::kColumns;
    const Values<n> bias = load<n>(block.bias<layer>() + f);
    float sums[2][2][n];
#pragma unroll
    for (int k = 0; k < 4 * n; k++) sums[k / n / 2][k / n % 2][k % n] = bias.of[k % n];
#pragma unroll 1
    for (int c = 0; c < C; c++) {
      float x[4][4];
      load_window(X::of(block.planes, c, 2 * r - 1, 2 * q - 1), X::kStride, x);
#pragma unroll
      for (int tap = 0; tap < 9; tap++) {
        const Values<n> w = load<n>(block.kernel<layer>() + (tap * C + c) * F + f);
#pragma unroll
        for (int k = 0; k < 4 * n; k++) {
          const int a = k / n / 2, b = k / n % 2;
          sums[a][b][k % n] += x[a + tap / 3][b + tap % 3] * w.of[k % n];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < n; k++) {
      float most = sums[0][0][k];
      int place = 0;
#pragma unroll
      for (int ab = 1; ab < 4; ab++) {
        const float y = sums[ab / 2][ab % 2][k];
        const bool inside = 2 * r + ab / 2 < X::kRows && 2 * q + ab % 2 < X::kColumns;
        if (inside && (y > most || y != y)) most = y, place = ab;
      }
      *Y::of(block.planes, f + k, r, q) = relu(most);
      block.argmax<layer>(f + k, p) = place;
    }
  }
  __syncthreads();
}

// The layer of the code, without pooling.
inline void conv(const Block& block) {
  using X = Pool<N>;
  using Y = Up<0>;
  constexpr int C = X::kChannels, F = Y::kChannels, n = channels_together(F, Y::kPositions);
  for (int task = thread(); task < Y::kPositions * (F / n); task += THREADS) {
    const int f = task % (F / n) * n, p = task / (F / n), r = p / Y::kColumns, q = p % Y::kColumns;
    Values<n> sums = load<n>(block.bias<N + 1>() + f);
#pragma unroll 2
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int tap = 0; tap < 9; tap++) {
        const float x = *X::of(block.planes, c, r + tap / 3 - 1, q + tap % 3 - 1);
        const Values<n> w = load<n>(block.kernel<N + 1>() + (tap * C + c) * F + f);
#pragma unroll
        for (int k = 0; k < n; k++) sums.of[k] += x * w.of[k];
      }
#pragma unroll
    for (int k = 0; k < n; k++) *Y::of(block.planes, f + k, r, q) = relu(sums.of[k]);
  }
  __syncthreads();
}

// Upsampling layer i. In rows as in columns, output 2 r + a takes the pixels r + a - 1 and r + a
// before the upsampling, by the sums of weights 2 a and 2 a + 1.
template <int i>
void upsample_conv(const Block& block) {
  using X = Up<i - 1>;
  using Y = Up<i>;
  constexpr int layer = N + 1 + i, C = X::kChannels, F = Y::kChannels;
  constexpr int n = channels_together(F, X::kPositions);
  for (int task = thread(); task < X::kPositions * (F / n); task += THREADS) {
    const int f = task % (F / n) * n, p = task / (F / n), r = p / X::kColumns, q = p % X::kColumns;
    const Values<n> bias = load<n>(block.bias<layer>() + f);
    float sums[2][2][n];
#pragma unroll
    for (int k = 0; k < 4 * n; k++) sums[k / n / 2][k / n % 2][k % n] = bias.of[k % n];
#pragma unroll 1
    for (int c = 0; c < C; c++) {
      float x[3][3];
#pragma unroll
      for (int tap = 0; tap < 9; tap++)
        x[tap / 3][tap % 3] = *X::of(block.planes, c, r + tap / 3 - 1, q + tap % 3 - 1);
#pragma unroll
      for (int tap = 0; tap < 16; tap++) {
        const int down = tap / 4, right = tap % 4;  // 2 a + s, 2 b + t
        const Values<n> w = load<n>(block.kernel<layer>() + (tap * C + c) * F + f);
#pragma unroll
        for (int k = 0; k < n; k++)
          sums[down / 2][right / 2][k] += x[down / 2 + down % 2][right / 2 + right % 2] * w.of[k];
      }
    }
#pragma unroll
    for (int ab = 0; ab < 4; ab++) {
      const int row = 2 * r + ab / 2 - dropped(0, N + 1 + i);
      const int column = 2 * q + ab % 2 - dropped(1, N + 1 + i);
      if (row < 0 || column < 0 || row >= Y::kRows || column >= Y::kColumns) continue;
#pragma unroll
      for (int k = 0; k < n; k++) {
        const float y = sums[ab / 2][ab % 2][k];
        *Y::of(block.planes, f + k, row, column) = i == N ? y : relu(y);
      }
    }
  }
  __syncthreads();
}

inline void encode(const Block& block) {
  each<1, N>([&]<int layer>() { conv_pool<layer>(block); });
}
inline void decode(const Block& block) {
  conv(block);
  each<1, N>([&]<int i>() { upsample_conv<i>(block); });
}

// The losses of an image, sums over its pixels of what this thread computes. MSE in place of BCE
// decides of which the gradient, times `weight`, takes the place of the logits.
struct Losses {
  float bce, mse;
};
template <bool mse, bool with_gradient>
Losses losses(const Block& block, const Array& targets, long long image, float weight) {
  using Y = Up<N>;
  Losses sums{};
  for (int k = thread(); k < kPixels; k += THREADS) {
    const int channel = k % CHANNELS, p = k / CHANNELS;
    float* logit = Y::of(block.planes, channel, p / Y::kColumns, p % Y::kColumns);
    const float z = *logit, t = value(targets, image * kPixels + k);
    const float e = expf(z > 0.f ? -z : z);
    const float y = (z > 0.f ? 1.f : e) / (1.f + e), error = y - t;
    sums.bce += (z <= 0.f ? 0.f : z) - z * t + log1pf(e);
    sums.mse += error * error;
    if (with_gradient) *logit = (mse ? 2.f * error * y * (1.f - y) : error) * weight;
  }
  return sums;
}

// --- Backward -----------------------------------------------------------------------------------

// Parts of a layer's sum over positions, so that more threads have a task.
constexpr int parts_of(int layer) {
  const int fit = smaller(kScratch / gradient_size(layer), THREADS / tasks_of(layer));
  return greater(1, smaller(fit, positions_of(layer)));
}
// Where a part of a layer's gradient is written: to the block's row, or to scratch to be added.
template <int parts>
struct Sums {
  float *row, *scratch;
  bool is_first;
  int size;
  void put(int part, int i, float value) const {
    if constexpr (parts == 1)
      row[i] = is_first ? value : row[i] + value;
    else
      scratch[part * size + i] = value;
    asm volatile("" ::: "memory");  // one after the other: together they would need registers
  }
  // After a wait. The same thread adds the same value of each image.
  void add() const {
    if constexpr (parts > 1)
      for (int i = thread(); i < size; i += THREADS) {
        float sum = 0.f;
#pragma unroll 4
        for (int part = 0; part < parts; part++) sum += scratch[part * size + i];
        row[i] = is_first ? sum : row[i] + sum;
      }
  }
};

// The gradient with respect to the bias and kernel of a layer up to N + 1, from that of its plane.
template <int layer, int parts>
void conv_weights(const Block& block, const Sums<parts>& sums) {
  constexpr bool pooled = layer <= N;
  using X = Pool<layer - 1>;
  using Y = Plane<layer>;
  constexpr int C = X::kChannels, F = Y::kChannels;
  for (int task = thread(); task < C * F * parts; task += THREADS) {
    const int c = task % C, f = task / C % F, part = task / C / F;
    float bias = 0.f, kernel[9] = {};
    for (int p = part; p < Y::kPositions; p += parts) {
      int r = p / Y::kColumns, q = p % Y::kColumns;
      const float d = *Y::of(block.planes, f, r, q);
      if constexpr (pooled) {
        const int place = block.argmax<layer>(f, p);
        r = 2 * r + place / 2, q = 2 * q + place % 2;
      }
      bias += d;
#pragma unroll
      for (int tap = 0; tap < 9; tap++)
        kernel[tap] += d * *X::of(block.planes, c, r + tap / 3 - 1, q + tap % 3 - 1);
    }
    if (c == 0) sums.put(part, f, bias);
#pragma unroll
    for (int tap = 0; tap < 9; tap++) sums.put(part, F + (tap * C + c) * F + f, kernel[tap]);
  }
}

// Of upsampling layer i. A weight meets the sum of 2x2 outputs for each pixel before it.
template <int i, int parts>
void upsample_weights(const Block& block, const Sums<parts>& sums) {
  using X = Up<i - 1>;
  using Y = Up<i>;
  constexpr int C = X::kChannels, F = Y::kChannels, n = together(C);
  for (int task = thread(); task < C / n * F * parts; task += THREADS) {
    const int f = task % F, c = task / F % (C / n) * n, part = task / F / (C / n);
    float bias = 0.f, kernel[9][n] = {};
#pragma unroll 1
    for (int p = part; p < X::kPositions; p += parts) {
      const int r = p / X::kColumns, q = p % X::kColumns;
      const float* d = Y::of(block.planes, f, 2 * r - 1 - dropped(0, N + 1 + i),
                             2 * q - 1 - dropped(1, N + 1 + i));
      float x[n], rows[2][1][4];
#pragma unroll
      for (int k = 0; k < n; k++) x[k] = *X::of(block.planes, c + k, r, q);
      load_window(d, Y::kStride, rows[0]);
#pragma unroll
      for (int a = 0; a < 3; a++) {
        float two[4];
        load_window(d + (a + 1) * Y::kStride, Y::kStride, rows[(a + 1) % 2]);
#pragma unroll
        for (int b = 0; b < 4; b++) two[b] = rows[0][0][b] + rows[1][0][b];
        if (a == 1) bias += two[1] + two[2];
#pragma unroll
        for (int b = 0; b < 3; b++) {
          const float four = two[b] + two[b + 1];
#pragma unroll
          for (int k = 0; k < n; k++) kernel[8 - 3 * a - b][k] += x[k] * four;
        }
      }
    }
    if (c == 0) sums.put(part, f, bias);
#pragma unroll
    for (int k = 0; k < 9 * n; k++)
      sums.put(part, F + (k / n * C + c + k % n) * F + f, kernel[k / n][k % n]);
  }
}

// Products of a window of gradients by the weights [in, out] of a tap for n channels in.
// Gradients come from n_out features at a time.
template <int C, int F, int n, int n_out>
inline Values<n * n_out> weights_for(const float* tap, int c, int f) {
  Values<n * n_out> w;
  if constexpr (F == 1) {
    const Values<n> some = load<n>(tap + c);
#pragma unroll
    for (int k = 0; k < n; k++) w.of[k] = some.of[k];
  } else {
#pragma unroll
    for (int k = 0; k < n; k++) {
      const Values<n_out> some = load<n_out>(tap + (c + k) * F + f);
#pragma unroll
      for (int m = 0; m < n_out; m++) w.of[k * n_out + m] = some.of[m];
    }
  }
  return w;
}

// Which sums of weights row or column 2 r - 1 + a after the upsampling has for pixel r before it.
constexpr int sums_for(int a) { return a == 0 ? 3 : a == 3 ? 0 : a; }

// The gradient of a plane in its place, where it passes the ReLU, from that of the upsampling
// layer after it.
template <int i>
void upsample_inputs(const Block& block) {
  using X = Up<i - 1>;
  using Y = Up<i>;
  constexpr int layer = N + 1 + i, C = X::kChannels, F = Y::kChannels;
  constexpr int n = channels_together(C, X::kPositions), n_out = together(F);
  for (int task = thread(); task < X::kPositions * (C / n); task += THREADS) {
    // Neighbouring threads have other channels where they read their weights together, else other
    // positions, so that they read the same weight.
    const int c = (F == 1 ? task % (C / n) : task / X::kPositions) * n;
    const int p = F == 1 ? task / (C / n) : task % X::kPositions;
    const int r = p / X::kColumns, q = p % X::kColumns;
    float sums[n] = {};
#pragma unroll 1
    for (int f = 0; f < F; f += n_out) {
// Row by row, which takes fewer registers than a window.
#pragma unroll 1
      for (int a = 0; a < 4; a++) {
        float d[n_out][1][4];
#pragma unroll
        for (int m = 0; m < n_out; m++)
          load_window(Y::of(block.planes, f + m, 2 * r - 1 + a - dropped(0, N + 1 + i),
                            2 * q - 1 - dropped(1, N + 1 + i)),
                      Y::kStride, d[m]);
#pragma unroll
        for (int b = 0; b < 4; b++) {
          const float* tap = block.kernel<layer>() + (4 * sums_for(a) + sums_for(b)) * C * F;
          const auto w = weights_for<C, F, n, n_out>(tap, c, f);
#pragma unroll
          for (int j = 0; j < n * n_out; j++) sums[j / n_out] += d[j % n_out][0][b] * w.of[j];
        }
      }
    }
#pragma unroll
    for (int k = 0; k < n; k++) {
      float* x = X::of(block.planes, c + k, r, q);
      *x = *x > 0.f ? sums[k] : 0.f;
    }
  }
  __syncthreads();
}

// Puts the gradient of a pooled plane to the places of the maxima.
template <int layer>
void unpool(const Block& block) {
  using X = Pool<layer - 1>;
  using Y = Pool<layer>;
  using Z = Before<layer>;
  constexpr int rows = Z::kRows, columns = Z::kStride;
  for (int k = thread(); k < Y::kChannels * rows * columns; k += THREADS) {
    const int f = k / (rows * columns), r = k / columns % rows - 1, q = k % columns - 1;
    float d = 0.f;
    if (r >= 0 && q >= 0 && r < X::kRows && q < X::kColumns &&
        block.argmax<layer>(f, r / 2 * Y::kColumns + q / 2) == r % 2 * 2 + q % 2)
      d = *Y::of(block.planes, f, r / 2, q / 2);
    *Z::of(block.planes, f, r, q) = d;
  }
  __syncthreads();
}

// As `upsample_inputs`, of the plane before a layer from 2 to N + 1. Z has the gradient of the
// layer's convolution.
template <int layer, class Z>
void conv_inputs(const Block& block) {
  using X = Pool<layer - 1>;
  constexpr int C = X::kChannels, F = channels(layer), n_out = together(F);
  constexpr int rows = (X::kRows + 1) / 2, columns = (X::kColumns + 1) / 2;
  constexpr int n = smaller(2, channels_together(C, rows * columns));
  for (int task = thread(); task < rows * columns * (C / n); task += THREADS) {
    const int c = task / (rows * columns) * n, p = task % (rows * columns);
    const int r = p / columns * 2, q = p % columns * 2;
    float sums[4][n] = {};
#pragma unroll 1
    for (int f = 0; f < F; f += n_out) {
      float d[n_out][4][4];
#pragma unroll
      for (int m = 0; m < n_out; m++)
        load_window(Z::of(block.planes, f + m, r - 1, q - 1), Z::kStride, d[m]);
#pragma unroll
      for (int tap = 0; tap < 9; tap++) {
        const auto w = weights_for<C, F, n, n_out>(block.kernel<layer>() + tap * C * F, c, f);
#pragma unroll
        for (int j = 0; j < 4 * n * n_out; j++) {
          const int ab = j / (n * n_out), k = j / n_out % n, m = j % n_out;
          sums[ab][k] += d[m][ab / 2 + 2 - tap / 3][ab % 2 + 2 - tap % 3] * w.of[k * n_out + m];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < 4 * n; j++) {
      const int row = r + j / n / 2, column = q + j / n % 2;
      if (row >= X::kRows || column >= X::kColumns) continue;
      float* x = X::of(block.planes, c + j % n, row, column);
      *x = *x > 0.f ? sums[j / n][j % n] : 0.f;
    }
  }
  __syncthreads();
}

// All gradients from that of the logits.
inline void backward(const Block& block, float* row, bool is_first) {
  each_down<N, 1>([&]<int i>() {
    constexpr int layer = N + 1 + i, parts = parts_of(layer);
    const Sums<parts> sums{row + gradient_at(layer), block.scratch, is_first, gradient_size(layer)};
    upsample_weights<i>(block, sums);
    __syncthreads();
    sums.add();
    upsample_inputs<i>(block);
  });
  each_down<N + 1, 1>([&]<int layer>() {
    constexpr int parts = parts_of(layer);
    const Sums<parts> sums{row + gradient_at(layer), block.scratch, is_first, gradient_size(layer)};
    conv_weights<layer>(block, sums);
    __syncthreads();
    sums.add();
    if constexpr (layer == N + 1) {
      conv_inputs<layer, Up<0>>(block);
    } else if constexpr (layer > 1) {
      unpool<layer>(block);
      conv_inputs<layer, Before<layer>>(block);
    } else {
      __syncthreads();
    }
  });
}

// --- Kernels ------------------------------------------------------------------------------------

// The shared memory of a block, and the weights in it.
inline Block begin(const Array& weights) {
  float* s = shared();
  auto* argmaxes = reinterpret_cast<unsigned char*>(s + kArgmaxAt);
  const float* from = floats(weights);
  if constexpr (kWeightsInShared)
    for (int i = thread(); i < kWeights; i += THREADS) s[kWeightsAt + i] = from[i];
  return {s, s + kScratchAt, argmaxes, kWeightsInShared ? s + kWeightsAt : from};
}

// The planes with zeros, and an image of [rows, columns, channels] in plane i.
template <int i>
void read(const Block& block, const Array& images, long long image) {
  using X = Plane<i>;
  for (int k = thread(); k < kArgmaxAt; k += THREADS) block.planes[k] = 0.f;
  __syncthreads();
  constexpr int size = X::kPositions * X::kChannels;
  for (int k = thread(); k < size; k += THREADS) {
    const int p = k / X::kChannels;
    *X::of(block.planes, k % X::kChannels, p / X::kColumns, p % X::kColumns) =
        value(images, image * size + k);
  }
  __syncthreads();
}
template <int i>
void write(const Block& block, const Array& to, long long image) {
  using X = Plane<i>;
  constexpr int size = X::kPositions * X::kChannels;
  for (int k = thread(); k < size; k += THREADS) {
    const int p = k / X::kChannels;
    results(to)[image * size + k] =
        *X::of(block.planes, k % X::kChannels, p / X::kColumns, p % X::kColumns);
  }
  __syncthreads();
}

// The images that a block computes, one after the other.
template <class F>
inline void each_image(const Array& images, F f) {
  for (long long image = blockIdx.x; image < images.rows; image += gridDim.x) f(image);
}
inline Array of_model(Array array) {
  const long long skipped = blockIdx.y * array.model;
  if (array.is_bytes)
    array.data = static_cast<unsigned char*>(array.data) + skipped;
  else
    array.data = static_cast<float*>(array.data) + skipped;
  return array;
}

// The images of a batch and their weights: all of an array, or some of a larger one by index, where
// an index from the end of the array on is padding.
struct Importance {
  Array of_images;
  long long place(long long i, const Array&) const { return i; }
  float weight(long long i, const Array&) const { return floats(of_images)[i]; }
};
struct Indices {
  Array of_images;
  int index(long long i) const {
    return static_cast<const int*>(of_images.data)[blockIdx.y * of_images.model + i];
  }
  long long place(long long i, const Array& images) const {
    return index(i) < images.rows ? index(i) : images.rows - 1;
  }
  float weight(long long i, const Array& images) const { return index(i) < images.rows; }
};

template <bool mse, class Batch>
void value_and_grad(const Array& weights, Array inputs, Array targets, const Batch& batch,
                    const Array& sums) {
  const Block block = begin(weights);
  inputs = of_model(inputs), targets = of_model(targets);
  float total = 0.f;
  for (int i = thread(); i < batch.of_images.rows; i += THREADS) total += batch.weight(i, inputs);
  total = block_sum(total, block.scratch);
  float* row = results(sums) + blockIdx.x * kGradient;
  float loss = 0.f;
  each_image(batch.of_images, [&](long long i) {
    const long long image = batch.place(i, inputs);
    read<0>(block, inputs, image);
    encode(block);
    decode(block);
    const float weight = batch.weight(i, inputs) / total / kPixels;
    const Losses some = losses<mse, true>(block, targets, image, weight);
    loss += block_sum(mse ? some.mse : some.bce, block.scratch) * weight;
    backward(block, row, i == blockIdx.x);
  });
  if (thread() == 0) row[0] = loss;
}

}  // namespace

// Read from the compiled text: what a launch must ask for.
CONSTANT int shared_bytes = 4 * kShared;

// Sums [blocks, 1 + gradient]: the mean loss of the images weighted by `importance`, and its
// gradient; each block writes the sum over its images.
KERNEL bce_and_grad(Array weights, Array inputs, Array targets, Array importance, Array sums) {
  value_and_grad<false>(weights, inputs, targets, Importance{importance}, sums);
}
KERNEL mse_and_grad(Array weights, Array inputs, Array targets, Array importance, Array sums) {
  value_and_grad<true>(weights, inputs, targets, Importance{importance}, sums);
}
// Of the images with some int32 `indices`, which are inputs and targets.
KERNEL bce_of_batch(Array weights, Array images, Array indices, Array sums) {
  value_and_grad<false>(weights, images, images, Indices{indices}, sums);
}
KERNEL mse_of_batch(Array weights, Array images, Array indices, Array sums) {
  value_and_grad<true>(weights, images, images, Indices{indices}, sums);
}

// Adds rows in their order: of 32 columns each block, every sixteenth row first.
KERNEL sum(Array rows, Array total) {
  constexpr int size = kGradient;
  float* scratch = shared();
  const float* from = floats(rows);
  for (int i = thread(); i < kSumColumns * kSumParts; i += THREADS) {
    const int column = blockIdx.x * kSumColumns + i % kSumColumns;
    float sum = 0.f;
    if (column < size)
#pragma unroll 4
      for (long long k = i / kSumColumns; k < rows.rows; k += kSumParts)
        sum += from[k * size + column];
    scratch[i] = sum;
  }
  __syncthreads();
  for (int i = thread(); i < kSumColumns; i += THREADS) {
    const int column = blockIdx.x * kSumColumns + i;
    float sum = 0.f;
    for (int part = 0; part < kSumParts; part++) sum += scratch[part * kSumColumns + i];
    if (column < size) results(total)[column] = sum;
  }
}

// Binary cross-entropy and squared error of each image: [2, images].
KERNEL losses_of(Array weights, Array inputs, Array targets, Array found) {
  const Block block = begin(weights);
  inputs = of_model(inputs), targets = of_model(targets);
  each_image(inputs, [&](long long image) {
    read<0>(block, inputs, image);
    encode(block);
    decode(block);
    const Losses some = losses<false, false>(block, targets, image, 0.f);
    const float bce = block_sum(some.bce, block.scratch);
    const float mse = block_sum(some.mse, block.scratch);
    if (thread() == 0) {
      results(found)[image] = bce / kPixels;
      results(found)[inputs.rows + image] = mse / kPixels;
    }
  });
}

KERNEL encode_images(Array weights, Array inputs, Array codes) {
  const Block block = begin(weights);
  inputs = of_model(inputs);
  each_image(inputs, [&](long long image) {
    read<0>(block, inputs, image);
    encode(block);
    write<N>(block, codes, image);
  });
}

KERNEL decode_codes(Array weights, Array codes, Array logits) {
  const Block block = begin(weights);
  codes = of_model(codes);
  each_image(codes, [&](long long image) {
    read<N>(block, codes, image);
    decode(block);
    write<2 * N + 1>(block, logits, image);
  });
}
