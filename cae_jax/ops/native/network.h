// The convolutional autoencoder for LANES images: encoder, decoder, loss and gradient.
//
// The build defines the sizes, from cae_jax/models/topology.py: F1 to F3, features of the encoder's
// convolutions; E0 to E3, sizes of the images and after each pooling; D1 to D3, sizes after each of
// the decoder's upsampling layers.

#pragma once

#include <algorithm>
#include <vector>

#include "conv.h"
#include "simd.h"

namespace {

static_assert(D3 == E0, "the network crops its result");

// Channels before and after each of the layers 1 to 7. Parameters and gradients are one vector: for
// each layer the bias, then the kernel [3, 3, in, out].
constexpr int kChannels[8] = {1, F1, F2, F3, F3, F2, F1, 1};
constexpr int bias_offset(int layer) {
  if (layer == 1) return 0;
  return bias_offset(layer - 1) + kChannels[layer - 1] * (9 * kChannels[layer - 2] + 1);
}
constexpr int kernel_offset(int layer) { return bias_offset(layer) + kChannels[layer]; }
constexpr int kParameters = bias_offset(8), kPixels = E0 * E0;

// Vectors in the workspace: two rows of upsample_conv; a row of tiles in the Winograd domain; the
// derivative with respect to a kernel, that of Winograd's layers in the Winograd domain.
constexpr int kRows = 2 * std::max({(D1 + 1) * F2, (D2 + 1) * F1, D3 + 1});
constexpr int kTiles = 16 * std::max({E2 * F1, E2* F2, E3* F3});
constexpr int kKernel = 16 * std::max({F1, F2, F1* F2, F2* F3, F3* F3});

// What one thread needs for LANES images; the borders stay zero after construction.
struct Workspace {
  Padded<E0, 1> x;
  Plane<E0, 1> target, logits;
  Padded<E1, F1> pool1;
  Padded<E2, F2> pool2;
  Padded<E3, F3> pool3;
  Plane<E3, F3, D1 == 2 * E3> conv4;  // a border where the next layer has 'same' padding
  Plane<D1, F2, D2 == 2 * D1> conv5;
  Plane<D2, F1, D3 == 2 * D2> conv6;
  Argmax<E1, F1> argmax1;
  Argmax<E2, F2> argmax2;
  Argmax<E3, F3> argmax3;
  // d: gradient with respect to the output of a layer before its ReLU; z: its box sum.
  Plane<E0, 1, 1> d7;
  Plane<D2, F1, 1> d6;
  Plane<D1, F2, 1> d5;
  Padded<E3, F3> d4;
  Padded<E2, F3> d3;
  Padded<E1, F2> d2;
  std::vector<vec> d1{2 * E1 * F1};  // two rows, before the pooling
  BoxSum<decltype(conv6), decltype(logits)> z7;
  BoxSum<decltype(conv5), decltype(conv6)> z6;
  BoxSum<decltype(conv4), decltype(conv5)> z5;
  std::vector<vec> rows{kRows}, domain{kTiles}, products{kTiles};
  std::vector<vec> kernel_sums{kKernel}, kernel1_sums{9 * F1};
};

// The parameters, and each kernel flipped in rows and columns and with its channels exchanged,
// [3, 3, out, in], for the backward pass. Of layers 2 to 4 both also in the Winograd domain.
struct Weights {
  const float* parameters;
  std::vector<float> flipped_kernels = std::vector<float>(kParameters), winograd_kernels[2][5];

  explicit Weights(const float* parameters) : parameters(parameters) {
    for (int layer = 2; layer <= 7; layer++) {
      const int in = kChannels[layer - 1], out = kChannels[layer];
      for (int k = 0; k < 9; k++)
        for (int c = 0; c < in; c++)
          for (int f = 0; f < out; f++)
            flipped_kernels[kernel_offset(layer) + (k * out + f) * in + c] =
                kernel(layer)[((8 - k) * in + c) * out + f];
    }
    for (int layer = 2; layer <= 4; layer++) {
      const int pairs = kChannels[layer - 1] * kChannels[layer];
      for (auto& kernels : winograd_kernels) kernels[layer].resize(16 * pairs);
      transform_kernels(kernel(layer), pairs, winograd_kernels[0][layer].data());
      transform_kernels(flipped(layer), pairs, winograd_kernels[1][layer].data());
    }
  }
  const float* bias(int layer) const { return parameters + bias_offset(layer); }
  const float* kernel(int layer) const { return parameters + kernel_offset(layer); }
  const float* flipped(int layer) const { return flipped_kernels.data() + kernel_offset(layer); }
  const float* winograd(int layer) const { return winograd_kernels[0][layer].data(); }
  const float* winograd_flipped(int layer) const { return winograd_kernels[1][layer].data(); }
};

// --- Forward ------------------------------------------------------------------------------------

// Layer 2 or 3 with its pooling.
template <int layer, class X, class Y, class A>
void winograd_pool(Workspace& s, const Weights& w, const X& x, const Y& y, const A& argmax) {
  const float* bias = w.bias(layer);
  winograd<Y::kChannels>(x, w.winograd(layer), s.domain.data(), s.products.data(),
                         [&](int r, int q, int t, const vec* window) ALWAYS_INLINE {
                           y.at(r, q)[t] =
                               pool<X::kSize>(window, r, q, bias[t], argmax.at(r, q)[t]);
                         });
}

void encode(Workspace& s, const Weights& w) {
  conv_pool(s.x, w.bias(1), w.kernel(1), s.pool1, s.argmax1);
  winograd_pool<2>(s, w, s.pool1, s.pool2, s.argmax2);
  winograd_pool<3>(s, w, s.pool2, s.pool3, s.argmax3);
}

void decode(Workspace& s, const Weights& w) {
  winograd<F3>(s.pool3, w.winograd(4), s.domain.data(), s.products.data(),
               [&](int r, int q, int t, const vec* y) ALWAYS_INLINE {
                 for (int p = 0; p < 4; p++)
                   if (inside<E3>(r, q, p))
                     s.conv4.at(2 * r + p / 2, 2 * q + p % 2)[t] = relu(y[p] + w.bias(4)[t]);
               });
  upsample_conv<false>(s.conv4, w.bias(5), w.kernel(5), s.conv5, s.rows.data());
  upsample_conv<false>(s.conv5, w.bias(6), w.kernel(6), s.conv6, s.rows.data());
  upsample_conv<true>(s.conv6, w.bias(7), w.kernel(7), s.logits, s.rows.data());
}

// The binary cross-entropy of each lane, mean over the pixels. pixel(k, error) gets the number of
// each pixel and by how much its sigmoid is above the target.
template <class Pixel>
vec loss(const Workspace& s, Pixel pixel) {
  vec total{};
  for (int k = 0; k < kPixels; k++) {
    const vec z = s.logits.data[k], t = s.target.data[k], e = exp_negative(z > 0.f ? -z : z);
    total += (z > 0.f ? z : vec{}) - z * t + log1p_unit(e);
    pixel(k, (z > 0.f ? vec{} + 1.f : e) / (e + 1.f) - t);
  }
  return total / float(kPixels);
}

// --- Backward -----------------------------------------------------------------------------------

// The loss and its gradient, times a weight for each lane: with respect to the logits in s.d7, and
// to the last bias.
vec loss_and_gradient(Workspace& s, vec weight, float* gradient) {
  vec d_total{};
  const vec losses = loss(s, [&](int k, vec error) ALWAYS_INLINE {
    d_total += *s.d7.at(k / E0, k % E0) = error * weight;
  });
  horizontal_sums(&d_total, 1, gradient + bias_offset(7));
  return losses;
}

// Layer 5, 6 or 7, with input x: the gradient with respect to its kernel; to its input, where it
// passes it passes the ReLU of the layer below, in dx; and to the bias of the layer below.
template <int layer, class DY, class Z, class X, class DX>
void upsample_conv_gradient(Workspace& s, const Weights& w, const DY& dy, const Z& z, const X& x,
                            const DX& dx, float* gradient) {
  constexpr int in = X::kChannels, out = Z::kChannels;
  box_sum(dy, z);
  std::fill_n(s.kernel_sums.begin(), 9 * out * in, vec{});
  correlate(z, x, s.kernel_sums.data());
  std::vector<float> flipped(9 * out * in);  // because the windows are those of z, [3, 3, out, in]
  horizontal_sums(s.kernel_sums.data(), 9 * out * in, flipped.data());
  for (int k = 0; k < 9; k++)
    for (int f = 0; f < out; f++)
      for (int c = 0; c < in; c++)
        gradient[kernel_offset(layer) + ((8 - k) * in + c) * out + f] =
            flipped[(k * out + f) * in + c];
  vec bias[in] = {};
  for (int r = 0; r < X::kSize; r++)
    convolve_row<3, 3, 2, out, in, X::kSize>(
        z.at(2 * r + Z::kBegin, Z::kBegin), Z::kStride, w.flipped(layer),
        [&](int q, int t, vec sum)
            ALWAYS_INLINE { bias[t] += dx.at(r, q)[t] = relu_gradient(x.at(r, q)[t], sum); });
  horizontal_sums(bias, in, gradient + bias_offset(layer - 1));
}

// Layer 2, 3 or 4, with input x: the gradient with respect to its kernel; to its input, which
// unpool(row, column, feature, d) hands to the pooling below and returns where it passes; and
// to the bias of the layer below. row_done(r) is called after rows 2 r and 2 r + 1.
template <int layer, class X, class D, class Unpool, class RowDone>
void winograd_gradient(Workspace& s, const Weights& w, const X& x, const D& d, float* gradient,
                       Unpool unpool, RowDone row_done) {
  constexpr int in = X::kChannels, out = D::kChannels;
  std::fill_n(s.kernel_sums.begin(), 16 * in * out, vec{});
  for (int r = 0; r < X::kTiles; r++) {
    transform_windows(x, r, s.domain.data());
    transform_derivatives(d, r, s.products.data());
    add_products<in, out, X::kTiles>(s.domain.data(), s.products.data(), s.kernel_sums.data());
  }
  for (int k = 0; k < in * out; k++) {
    vec m[16];
    for (int p = 0; p < 16; p++) m[p] = s.kernel_sums[p * in * out + k];
    transform_kernel_derivative(m);
    for (int i = 0; i < 9; i++) s.kernel_sums[i * in * out + k] = m[i / 3 * 4 + i % 3];
  }
  horizontal_sums(s.kernel_sums.data(), 9 * in * out, gradient + kernel_offset(layer));
  vec bias[in] = {};
  winograd<in>(d, w.winograd_flipped(layer), s.domain.data(), s.products.data(),
               [&](int r, int q, int t, const vec* y) ALWAYS_INLINE {
                 for (int p = 0; p < 4; p++)
                   if (inside<X::kSize>(r, q, p))
                     bias[t] += unpool(2 * r + p / 2, 2 * q + p % 2, t, y[p]);
                 if (q == X::kTiles - 1 && t == in - 1) row_done(r);
               });
  horizontal_sums(bias, in, gradient + bias_offset(layer - 1));
}

// The gradient with respect to all parameters, from that in s.d7; adds nothing to the last bias.
void backward(Workspace& s, const Weights& w, float* gradient) {
  upsample_conv_gradient<7>(s, w, s.d7, s.z7, s.conv6, s.d6, gradient);
  upsample_conv_gradient<6>(s, w, s.d6, s.z6, s.conv5, s.d5, gradient);
  upsample_conv_gradient<5>(s, w, s.d5, s.z5, s.conv4, s.d4, gradient);
  auto unpool_to = [](const auto& dx, const auto& argmax) ALWAYS_INLINE {
    return [&](int r, int q, int t, vec d)
               ALWAYS_INLINE { return unpool(dx, r, q, t, argmax.at(r, q)[t], d); };
  };
  auto nothing = [](int) {};
  winograd_gradient<4>(s, w, s.pool3, s.d4, gradient, unpool_to(s.d3, s.argmax3), nothing);
  winograd_gradient<3>(s, w, s.pool2, s.d3, gradient, unpool_to(s.d2, s.argmax2), nothing);
  std::fill_n(s.kernel1_sums.begin(), 9 * F1, vec{});
  winograd_gradient<2>(
      s, w, s.pool1, s.d2, gradient,
      [&](int r, int q, int t, vec d) ALWAYS_INLINE {
        return s.d1[(r % 2 * E1 + q) * F1 + t] = relu_gradient(s.pool1.at(r, q)[t], d);
      },
      [&](int tile) {
        for (int r = 2 * tile; r < std::min(2 * tile + 2, E1); r++)
          correlate_argmax<F1, E1>(s.x.at(2 * r - 1, -1), s.x.kStride, &s.d1[r % 2 * E1 * F1],
                                   s.argmax1.at(r, 0), s.kernel1_sums.data());
      });
  horizontal_sums(s.kernel1_sums.data(), 9 * F1, gradient + kernel_offset(1));
}

}  // namespace
