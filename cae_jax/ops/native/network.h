// The convolutional autoencoder for LANES images: encoder, decoder, loss and gradient.
//
// The build defines the sizes, from cae_jax/models/topology.py, as lists. CHANNELS of the images
// and FEATURES of the encoder's convolutions; ENCODER_ROWS and ENCODER_COLUMNS of the images and
// after each pooling; DECODER_ROWS and DECODER_COLUMNS of the code and after each upsampling layer.

#pragma once

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>
#include <vector>

#include "conv.h"
#include "simd.h"

namespace {

// With N poolings there are the layers 1 to N with pooling, N + 1, and N + 2 to kLayers = 2 N + 1
// with upsampling. Planes before and after them are numbered: 0 to N in the encoder, the image and
// after each pooling; 0 to N in the decoder, after layer N + 1 and after each upsampling layer.
constexpr int kWidths[] = {CHANNELS, FEATURES}, N = std::size(kWidths) - 1, kLayers = 2 * N + 1;
constexpr int kEncoder[2][N + 1] = {{ENCODER_ROWS}, {ENCODER_COLUMNS}};
constexpr int kDecoder[2][N + 1] = {{DECODER_ROWS}, {DECODER_COLUMNS}};
constexpr Size encoder_size(int i) { return {kEncoder[0][i], kEncoder[1][i]}; }
constexpr Size decoder_size(int i) { return {kDecoder[0][i], kDecoder[1][i]}; }

// Channels after a layer; before it those of the layer before.
constexpr int channels(int layer) {
  return kWidths[layer <= N ? layer : layer == N + 1 ? N : kLayers - layer];
}
// Parameters and gradients are one vector: for each layer the bias, then the kernel [3, 3, in,
// out].
constexpr int bias_offset(int layer) {
  if (layer == 1) return 0;
  return bias_offset(layer - 1) + channels(layer - 1) * (9 * channels(layer - 2) + 1);
}
constexpr int kernel_offset(int layer) { return bias_offset(layer) + channels(layer); }
constexpr int kParameters = bias_offset(kLayers + 1);
constexpr Size kImage = encoder_size(0);
constexpr int kRow = kImage.columns * CHANNELS, kPixels = kImage.rows * kRow;

// Calls f<first>() to f<last>(), or from the last to the first.
template <int first, int last, class F>
INLINE void each(F f) {
  if constexpr (first <= last) f.template operator()<first>(), each<first + 1, last>(f);
}
template <int last, int first, class F>
INLINE void each_down(F f) {
  if constexpr (first <= last) f.template operator()<last>(), each_down<last - 1, first>(f);
}

// The greatest f(i) for i from `first` to `last`.
template <class F>
constexpr int greatest(int first, int last, F f) {
  int most = 0;
  for (int i = first; i <= last; i++) most = std::max(most, f(i));
  return most;
}

// T<first>, T<first + 1> and so on, as many as `count`.
template <template <int> class T, int first, class Indices>
struct Tuple;
template <template <int> class T, int first, int... i>
struct Tuple<T, first, std::integer_sequence<int, i...>> : std::tuple<T<first + i>...> {};
template <template <int> class T, int first, int count>
using Planes = Tuple<T, first, std::make_integer_sequence<int, count>>;

template <int i>
using Pool = Padded<encoder_size(i).rows, encoder_size(i).columns, kWidths[i]>;
template <int i>
using PoolArgmax = Argmax<encoder_size(i).rows, encoder_size(i).columns, kWidths[i]>;
// A border where the next layer has 'same' padding; the last one has none.
constexpr Size border(int i) {
  if (i == N) return {0, 0};
  const Size x = decoder_size(i), y = decoder_size(i + 1);
  return {same_rows(x, y), same_columns(x, y)};
}
template <int i>
using Up = Plane<decoder_size(i).rows, decoder_size(i).columns, channels(N + 1 + i), border(i).rows,
                 border(i).columns>;
// Gradients: with respect to the output of a layer before its ReLU, and the box sum of that.
template <int i>
using UpGradient = Plane<decoder_size(i).rows, decoder_size(i).columns, channels(N + 1 + i), 1>;
template <int i>
using UpBoxSum = BoxSum<Up<i - 1>, Up<i>>;
template <int layer>
using PoolGradient =
    Padded<encoder_size(layer - 1).rows, encoder_size(layer - 1).columns, kWidths[layer]>;

// Vectors in the workspace: two rows of upsample_conv; tiles in the Winograd domain; a row with
// features in the lanes; the derivative with respect to a kernel, that of Winograd's layers in the
// Winograd domain.
constexpr int kRows =
    2 * greatest(1, N, [](int i) { return (decoder_size(i).columns + 1) * channels(N + 1 + i); });
constexpr int kDomain = 16 * greatest(1, N + 1, [](int layer) {
                          return point_stride(kTilesAtATime, blocks(channels(layer)) * LANES);
                        });
constexpr int kFeatures = LANES * greatest(0, N - 1, [](int i) {
                            return decoder_size(i).columns * blocks(channels(N + 1 + i));
                          });
constexpr int kKernel =
    std::max(16 * greatest(2, N + 1, [](int i) { return channels(i - 1) * blocks(channels(i)); }),
             9 * greatest(N + 2, kLayers, [](int i) { return channels(i - 1) * channels(i); }));

// What a thread needs for a moment: tiles in the Winograd domain; a row with features in the lanes;
// the derivative with respect to a kernel.
struct Room {
  std::vector<vec> domain{kDomain}, products{kDomain}, features{kFeatures}, kernel_sums{kKernel};
};

// What one thread needs for LANES images; the borders stay zero after construction.
struct Workspace {
  Planes<Pool, 0, N + 1> pools;  // the first one holds the images
  Planes<PoolArgmax, 1, N> argmaxes;
  Planes<Up, 0, N + 1> ups;  // the last one holds the logits
  Plane<kImage.rows, kImage.columns, CHANNELS> target;
  Padded<decoder_size(0).rows, decoder_size(0).columns, channels(N + 1)> code_gradient;
  Planes<UpGradient, 1, N> up_gradients;
  Planes<UpBoxSum, 1, N> box_sums;
  Planes<PoolGradient, 2, N - 1> pool_gradients;
  // Two rows of the gradient with respect to the first pooling, before the pooling.
  std::vector<vec> first_gradient{2 * encoder_size(1).columns * kWidths[1]};
  std::vector<vec> rows{kRows}, first_kernel_sums{16 * CHANNELS * kWidths[1]};
  // The windows of a row of the first pooling in the Winograd domain.
  std::vector<vec> windows{16 * point_stride(encoder_size(1).columns, CHANNELS)};
  Room room;

  template <int i>
  auto& pool() const {
    return std::get<i>(pools);
  }
  template <int i>
  auto& argmax() const {
    return std::get<i - 1>(argmaxes);
  }
  template <int i>
  auto& up() const {
    return std::get<i>(ups);
  }
  template <int i>
  auto& up_gradient() const {
    if constexpr (i == 0)
      return code_gradient;
    else
      return std::get<i - 1>(up_gradients);
  }
  // With respect to the convolution of a layer up to N + 1, before its pooling.
  template <int layer>
  auto& gradient() const {
    if constexpr (layer == N + 1)
      return code_gradient;
    else
      return std::get<layer - 2>(pool_gradients);
  }
};

// The parameters, and each kernel flipped in rows and columns and with its channels exchanged,
// [3, 3, out, in], for the backward pass. Of Winograd's layers both also in the Winograd domain.
struct Weights {
  const float* parameters;
  std::vector<float> flipped_kernels = std::vector<float>(kParameters), winograd_kernels[2][N + 2],
                     first = std::vector<float>(12 * CHANNELS * kWidths[1]);

  explicit Weights(const float* parameters) : parameters(parameters) {
    transform_kernels<CHANNELS * kWidths[1], true>(kernel(1), first.data());
    each<2, kLayers>([&]<int layer>() {
      constexpr int in = channels(layer - 1), out = channels(layer);
      float* to = flipped_kernels.data() + kernel_offset(layer);
      for (int k = 0; k < 9; k++)
        for (int f = 0; f < out; f++)
          for (int c = 0; c < in; c++)
            to[(k * out + f) * in + c] = kernel(layer)[((8 - k) * in + c) * out + f];
      if constexpr (layer <= N + 1) {
        for (auto& kernels : winograd_kernels) kernels[layer].resize(16 * in * out);
        transform_kernels<in * out>(kernel(layer), winograd_kernels[0][layer].data());
        transform_kernels<in * out>(flipped(layer), winograd_kernels[1][layer].data());
      }
    });
  }
  const float* bias(int layer) const { return parameters + bias_offset(layer); }
  const float* kernel(int layer) const { return parameters + kernel_offset(layer); }
  const float* flipped(int layer) const { return flipped_kernels.data() + kernel_offset(layer); }
  const float* winograd(int layer) const { return winograd_kernels[0][layer].data(); }
  const float* winograd_flipped(int layer) const { return winograd_kernels[1][layer].data(); }
};

// --- Forward ------------------------------------------------------------------------------------

// A layer with its pooling.
template <int layer>
void winograd_pool(Workspace& s, const Weights& w) {
  const auto& x = s.pool<layer - 1>();
  const auto& y = s.pool<layer>();
  const auto& argmax = s.argmax<layer>();
  const float* bias = w.bias(layer);
  winograd<channels(layer)>(x, w.winograd(layer), s.room.domain.data(), s.room.products.data(),
                            [&](int r, int q, int t, const vec* window) ALWAYS_INLINE {
                              y.at(r, q)[t] = pool(encoder_size(layer - 1), window, r, q, bias[t],
                                                   argmax.at(r, q)[t]);
                            });
}

void encode(Workspace& s, const Weights& w) {
  conv_pool(s.pool<0>(), w.bias(1), w.first.data(), s.pool<1>(), s.argmax<1>());
  each<2, N>([&]<int layer>() { winograd_pool<layer>(s, w); });
}

// Layer N + 1, after the code.
void code_layer(Workspace& s, const Weights& w) {
  winograd<channels(N + 1)>(
      s.pool<N>(), w.winograd(N + 1), s.room.domain.data(), s.room.products.data(),
      [&](int r, int q, int t, const vec* y) ALWAYS_INLINE {
        for (int p = 0; p < 4; p++)
          if (inside(decoder_size(0), r, q, p))
            s.up<0>().at(2 * r + p / 2, 2 * q + p % 2)[t] = relu(y[p] + w.bias(N + 1)[t]);
      });
}

// Upsampling and layer N + 1 + i.
template <int i>
void upsample(Workspace& s, const Weights& w) {
  constexpr int layer = N + 1 + i;
  upsample_conv<i == N>(s.up<i - 1>(), w.bias(layer), w.kernel(layer), s.up<i>(), s.rows.data());
}

void decode(Workspace& s, const Weights& w) {
  code_layer(s, w);
  each<1, N>([&]<int i>() { upsample<i>(s, w); });
}

// The binary cross-entropy of each lane, mean over the pixels. pixel(r, k, reconstruction, error)
// gets pixel k of each row, and by how much the reconstruction is above the target.
template <class Pixel>
vec loss(const Workspace& s, Pixel pixel) {
  vec total{};
  for (int r = 0; r < kImage.rows; r++) {
    const vec *logits = s.up<N>().at(r, 0), *target = s.target.at(r, 0);
    vec sum{};  // of a row: one sum of all pixels loses more digits
    for (int k = 0; k < kRow; k++) {
      const vec z = logits[k], t = target[k], e = exp_negative(z > 0.f ? -z : z);
      sum += (z > 0.f ? z : vec{}) - z * t + log1p_unit(e);
      const vec reconstruction = (z > 0.f ? vec{} + 1.f : e) / (e + 1.f);
      pixel(r, k, reconstruction, reconstruction - t);
    }
    total += sum;
  }
  return total / float(kPixels);
}

// --- Backward -----------------------------------------------------------------------------------

// The loss that training minimises, the cross-entropy or the squared error, and its gradient, times
// a weight for each lane: with respect to the logits, and to the last bias.
template <bool mse>
vec loss_and_gradient(Workspace& s, vec weight, float* gradient) {
  vec squares{}, d_bias[CHANNELS] = {};
  const vec losses = loss(s, [&](int r, int k, vec y, vec error) ALWAYS_INLINE {
    if (mse) squares += error * error;
    const vec d = (mse ? 2.f * error * y * (1.f - y) : error) * weight;
    d_bias[k % CHANNELS] += s.up_gradient<N>().at(r, 0)[k] = d;
  });
  horizontal_sums(d_bias, CHANNELS, gradient + bias_offset(kLayers));
  return mse ? squares / float(kPixels) : losses;
}

// The gradient with respect to the kernel of layer N + 1 + i, with upsampling.
template <int i>
void upsample_kernel_gradient(const Workspace& s, Room& room, float* gradient) {
  constexpr int layer = N + 1 + i, in = channels(layer - 1), out = channels(layer);
  const auto& x = s.up<i - 1>();
  const auto& z = std::get<i - 1>(s.box_sums);
  std::vector<float> flipped(9 * out * in);  // because the windows are those of z, [3, 3, out, in]
  constexpr bool by_features = in % LANES == 0 && out > 4;  // else lanes or registers stay empty
  vec* sums = room.kernel_sums.data();
  std::fill_n(sums, 9 * out * (by_features ? blocks(in) : in), vec{});
  if constexpr (by_features) {
    correlate_features(z, x, room.features.data(), sums);
    std::memcpy(flipped.data(), sums, 4 * flipped.size());
  } else {
    correlate(z, x, sums);
    horizontal_sums(sums, 9 * out * in, flipped.data());
  }
  for (int k = 0; k < 9; k++)
    for (int f = 0; f < out; f++)
      for (int c = 0; c < in; c++)
        gradient[kernel_offset(layer) + ((8 - k) * in + c) * out + f] =
            flipped[(k * out + f) * in + c];
}

// The gradient with respect to the input of the same layer, from the box sum, where it passes the
// ReLU of the layer below; and to the bias of the layer below.
template <int i>
void upsample_input_gradient(Workspace& s, const Weights& w, float* gradient) {
  constexpr int layer = N + 1 + i, in = channels(layer - 1), out = channels(layer);
  const auto& x = s.up<i - 1>();
  const auto& dx = s.up_gradient<i - 1>();
  const auto& z = std::get<i - 1>(s.box_sums);
  vec bias[in] = {};
  for (int r = 0; r < decoder_size(i - 1).rows; r++)
    convolve_row<3, 3, 2, out, in, decoder_size(i - 1).columns>(
        z.from(2 * r, 0), z.kStride, w.flipped(layer), [&](int q, int t, vec sum) ALWAYS_INLINE {
          bias[t] += dx.at(r, q)[t] = relu_gradient(x.at(r, q)[t], sum);
        });
  horizontal_sums(bias, in, gradient + bias_offset(layer - 1));
}

// The derivative with respect to a kernel from its sums in the Winograd domain, with features b in
// the lanes: gradient[i][a * stride_a + b * stride_b] for the 3x3 taps i.
template <int A, int B>
void store_winograd_gradient(const vec* sums, float* gradient, int stride_a, int stride_b) {
  constexpr int V = blocks(B);
  for (int k = 0; k < A * V; k++) {
    vec m[16];
    for (int p = 0; p < 16; p++) m[p] = sums[p * A * V + k];
    transform_kernel_derivative(m);
    float* to = gradient + k / V * stride_a + k % V * LANES * stride_b;
    for (int i = 0; i < 9; i++)
      for (int l = 0; l < std::min(LANES, B - k % V * LANES); l++)
        to[i * A * B + l * stride_b] = m[i / 3 * 4 + i % 3][l];
  }
}

// The gradient with respect to the kernel of a layer from 2 to N + 1.
template <int layer>
void winograd_kernel_gradient(const Workspace& s, Room& room, float* gradient) {
  constexpr int in = channels(layer - 1), out = channels(layer);
  constexpr Size tiles = tiles_of(encoder_size(layer - 1));
  constexpr bool swapped = out % LANES != 0 && in % LANES == 0;  // `in` fills the lanes, `out` not
  constexpr int A = swapped ? out : in, B = swapped ? in : out;
  vec *x = room.domain.data(), *d = room.products.data(), *sums = room.kernel_sums.data();
  std::fill_n(sums, 16 * A * blocks(B), vec{});
  each_equal_block<tiles.rows * tiles.columns, kTilesAtATime>([&]<int n>(int first) ALWAYS_INLINE {
    transform_windows<n, swapped>(s.pool<layer - 1>(), first, x);
    transform_derivatives<n, !swapped>(s.gradient<layer>(), first, d);
    add_winograd_products<A, B, n>(swapped ? d : x, swapped ? x : d, sums);
  });
  store_winograd_gradient<A, B>(sums, gradient + kernel_offset(layer), swapped ? 1 : out,
                                swapped ? out : 1);
}

// The gradient with respect to the input of the same layer, which unpool(row, column, feature, d)
// hands to the pooling below and returns where it passes; and to the bias of the layer below.
// row_done(r) is called after rows 2 r and 2 r + 1.
template <int layer, class Unpool, class RowDone>
void winograd_input_gradient(Workspace& s, const Weights& w, float* gradient, Unpool unpool,
                             RowDone row_done) {
  constexpr int in = channels(layer - 1);
  constexpr Size size = encoder_size(layer - 1), tiles = tiles_of(size);
  vec bias[in] = {};
  winograd<in>(s.gradient<layer>(), w.winograd_flipped(layer), s.room.domain.data(),
               s.room.products.data(), [&](int r, int q, int t, const vec* y) ALWAYS_INLINE {
                 for (int p = 0; p < 4; p++)
                   if (inside(size, r, q, p))
                     bias[t] += unpool(2 * r + p / 2, 2 * q + p % 2, t, y[p]);
                 if (q == tiles.columns - 1 && t == in - 1) row_done(r);
               });
  horizontal_sums(bias, in, gradient + bias_offset(layer - 1));
}

// The gradient with respect to the input of a layer from 3 to N + 1, and through the pooling
// before.
template <int layer>
void unpooled_gradient(Workspace& s, const Weights& w, float* gradient) {
  const auto& dx = s.gradient<layer - 1>();
  const auto& argmax = s.argmax<layer - 1>();
  winograd_input_gradient<layer>(
      s, w, gradient,
      [&](int r, int q, int t, vec d)
          ALWAYS_INLINE { return unpool(dx, r, q, t, argmax.at(r, q)[t], d); },
      [](int) {});
}

// The gradient with respect to the input of layer 2, of which a row of the first pooling after the
// other, where it passes the ReLU, gives the derivative with respect to the first kernel.
void first_gradients(Workspace& s, const Weights& w, float* gradient) {
  constexpr int out = kWidths[1];
  constexpr Size size = encoder_size(1);
  const auto& x = s.pool<0>();
  std::fill(s.first_kernel_sums.begin(), s.first_kernel_sums.end(), vec{});
  auto row = [&](int r) ALWAYS_INLINE { return &s.first_gradient[r % 2 * size.columns * out]; };
  winograd_input_gradient<2>(
      s, w, gradient,
      [&](int r, int q, int t, vec d)
          ALWAYS_INLINE { return row(r)[q * out + t] = relu_gradient(s.pool<1>().at(r, q)[t], d); },
      [&](int tile) {
        for (int r = 2 * tile; r < std::min(2 * tile + 2, size.rows); r++)
          correlate_argmax<out>(x, r, row(r), s.argmax<1>().at(r, 0), s.windows.data(),
                                s.first_kernel_sums.data());
      });
  vec taps[9 * CHANNELS * out];
  for (int k = 0; k < CHANNELS * out; k++) {
    vec m[16];
    std::copy_n(&s.first_kernel_sums[16 * k], 16, m);
    transform_kernel_derivative(m);
    for (int i = 0; i < 9; i++) taps[i * CHANNELS * out + k] = m[i / 3 * 4 + i % 3];
  }
  horizontal_sums(taps, 9 * CHANNELS * out, gradient + kernel_offset(1));
}

// The gradient with respect to the kernel of a layer from 2 on, of a group whose backward pass has
// come to that layer. Its bits do not depend on the thread: its code is not inlined, where a
// compiler could add in another order.
template <int layer>
__attribute__((noinline)) void kernel_gradient(const Workspace& s, Room& room, float* gradient) {
  if constexpr (layer > N + 1)
    upsample_kernel_gradient<layer - N - 1>(s, room, gradient);
  else
    winograd_kernel_gradient<layer>(s, room, gradient);
}

// The gradient with respect to all parameters, from that with respect to the logits; adds nothing
// to the last bias. kernel<layer>() sees to kernel_gradient, at once or later: nothing that it
// reads changes any more.
template <class Kernel>
void backward(Workspace& s, const Weights& w, float* gradient, Kernel kernel) {
  each_down<N, 1>([&]<int i>() {
    box_sum(s.up_gradient<i>(), std::get<i - 1>(s.box_sums));
    kernel.template operator()<N + 1 + i>();
    upsample_input_gradient<i>(s, w, gradient);
  });
  each_down<N + 1, 3>([&]<int layer>() {
    kernel.template operator()<layer>();
    unpooled_gradient<layer>(s, w, gradient);
  });
  kernel.template operator()<2>();
  first_gradients(s, w, gradient);
}

}  // namespace
