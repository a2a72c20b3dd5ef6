// The convolutional autoencoder on a CPU: losses, gradients, codes and logits in one native call;
// and SOAP's update in another (soap.h).
//
// The SIMD lane is the image. LANES images form a group, and a vector holds one value, the same
// pixel and channel, of all of them. Every operation of the network, forward and backward, then is
// an operation on whole vectors with a weight that is the same in all lanes: no shuffles, and no
// channel count that does not fit. A group runs forward and backward through the whole network, in
// the cache of one core, before the next one starts; threads take whole groups, then kernel
// gradients of other threads' groups (threads.h).
//
// Four identities keep the arithmetic small:
//   - Convolution + pooling: the four convolution outputs in a 2x2 pooling window are computed
//     together, in registers; stored are the maximum and its argmax.
//   - Nearest upsampling is zero insertion followed by a 2x2 box sum, and the box sum commutes with
//     the convolution. So the kernel runs over the zero-inserted image, in which an output pixel
//     meets 1, 2 or 4 of the 9 taps: 9 multiplications per pixel before upsampling instead of 36.
//   - The adjoint of that: box-sum the gradient, then a 3x3 convolution with step 2.
//   - The encoder after its first layer, and the layer after it, by Winograd's convolution: 16
//     multiplications for 2x2 output pixels instead of 36, in the forward pass and in both
//     derivatives. On the images themselves the transforms cost as much as they save, so that it is
//     F(2, 3) along the rows alone, 6 instead of 9 for a pixel; the derivative of that kernel has
//     the gradient of a pooling, one pixel of four, whose transform is masks and signs.
//
// build.py compiles this file at first use, with the sizes of the network as macros (network.h).
// Arrays are row-major, as in JAX.

#include "xla/ffi/api/ffi.h"

#include <type_traits>

#include "soap.h"
#include "threads.h"

namespace ffi = xla::ffi;

template <>
struct ffi::CtxBinding<ffi::ThreadPool> {
  using Ctx = ffi::ThreadPool;
};

namespace {

// Images [count, rows, columns, channels] of float32 or uint8 (0..255 for 0..1), in groups of
// LANES.
struct Images {
  const void* data;
  bool is_bytes;
  int64_t count;

  explicit Images(const ffi::AnyBuffer& buffer)
      : data(buffer.untyped_data()),
        is_bytes(buffer.element_type() == ffi::DataType::U8),
        count(buffer.dimensions()[0]) {}

  template <class P>
  void load(int64_t group, const P& plane) const {
    is_bytes ? load_as<ubytes>(group, plane) : load_as<vec>(group, plane);
  }
  template <class V, class P>
  void load_as(int64_t group, const P& plane) const {
    using T = std::remove_cvref_t<decltype(V{}[0])>;
    constexpr int rows = P::kSize.rows, row = P::kSize.columns * P::kChannels;
    const T* images[LANES];  // past the last image a group repeats it, with weight 0
    for (int l = 0; l < LANES; l++)
      images[l] = static_cast<const T*>(data) + std::min(group * LANES + l, count - 1) * rows * row;
    for (int r = 0; r < rows; r++)
      each_block<row, LANES>([&]<int n>(int k) ALWAYS_INLINE {
        V block[LANES] = {};
        for (int l = 0; l < LANES; l++)
          std::memcpy(&block[l], images[l] + r * row + k, n * sizeof(T));
        transpose(block);
        for (int i = 0; i < n; i++) plane.at(r, 0)[k + i] = unit(block[i]);
      });
  }
};

// The upper left part of a plane, of `size`.
template <Size size, class P>
void store(const P& plane, int64_t group, int64_t count, float* images) {
  constexpr int row = size.columns * P::kChannels;
  for (int r = 0; r < size.rows; r++)
    each_block<row, LANES>([&]<int n>(int k) ALWAYS_INLINE {
      vec block[LANES] = {};
      for (int i = 0; i < n; i++) block[i] = plane.at(r, 0)[k + i];
      transpose(block);
      for (int l = 0; l < LANES && group * LANES + l < count; l++)
        std::memcpy(images + ((group * LANES + l) * size.rows + r) * row + k, &block[l],
                    n * sizeof(float));
    });
}

void forward(Workspace& s, const Weights& w, const Images& x, const Images& y, int64_t group) {
  x.load(group, s.pool<0>());
  y.load(group, s.target);
  encode(s, w);
  decode(s, w);
}

int64_t groups_of(int64_t images) { return (images + LANES - 1) / LANES; }

using Floats = ffi::Buffer<ffi::F32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;

// Loss: mean over the images, weighted by weights [N]. Each group has its own partial sums, which
// are added in the order of the groups: the result does not depend on the number of threads.
template <bool mse>
ffi::Error ValueAndGrad(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer inputs,
                        ffi::AnyBuffer targets, Floats weights, FloatsOut value,
                        FloatsOut gradient) {
  const Images x(inputs), y(targets);
  const Weights w(parameters.typed_data());
  const float* image_weights = weights.typed_data();
  double total_weight = 0;
  for (int64_t i = 0; i < x.count; i++) total_weight += image_weights[i];
  const int64_t groups = groups_of(x.count);
  std::vector<float> gradients(groups * kParameters);
  std::vector<double> values(groups);
  static const int64_t most_helpers = helpers();
  for_groups(pool, groups, most_helpers, [&](const Group& group, Workspace& s) {
    vec weight{};
    const int64_t first = group.number * LANES;
    for (int l = 0; l < LANES && first + l < x.count; l++)
      weight[l] = image_weights[first + l] / total_weight;
    forward(s, w, x, y, group.number);
    float* partial = gradients.data() + group.number * kParameters;
    const vec losses = loss_and_gradient<mse>(s, weight / float(kPixels), partial) * weight;
    for (int l = 0; l < LANES; l++) values[group.number] += losses[l];
    group.backward(s, w, partial);
  });
  float* sums = gradient->typed_data();
  std::fill_n(sums, kParameters, 0.f);
  double sum = 0;
  for (int64_t group = 0; group < groups; group++) {
    for (int i = 0; i < kParameters; i++) sums[i] += gradients[group * kParameters + i];
    sum += values[group];
  }
  *value->typed_data() = sum;
  return ffi::Error::Success();
}

// The binary cross-entropy and the mean squared error of each image.
ffi::Error Losses(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer inputs,
                  ffi::AnyBuffer targets, FloatsOut bce, FloatsOut mse) {
  const Images x(inputs), y(targets);
  const Weights w(parameters.typed_data());
  for_groups(pool, groups_of(x.count), 0, [&](const Group& group, Workspace& s) {
    forward(s, w, x, y, group.number);
    vec squares{};
    const vec losses =
        loss(s, [&](int, int, vec, vec error) ALWAYS_INLINE { squares += error * error; });
    for (int64_t l = 0, i = group.number * LANES; l < LANES && i < x.count; l++, i++) {
      bce->typed_data()[i] = losses[l];
      mse->typed_data()[i] = squares[l] / float(kPixels);
    }
  });
  return ffi::Error::Success();
}

ffi::Error Encode(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer inputs, FloatsOut codes) {
  const Images x(inputs);
  const Weights w(parameters.typed_data());
  for_groups(pool, groups_of(x.count), 0, [&](const Group& group, Workspace& s) {
    x.load(group.number, s.pool<0>());
    encode(s, w);
    store<encoder_size(N)>(s.pool<N>(), group.number, x.count, codes->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error Decode(ffi::ThreadPool pool, Floats parameters, ffi::AnyBuffer codes, FloatsOut logits) {
  const Images code(codes);
  const Weights w(parameters.typed_data());
  for_groups(pool, groups_of(code.count), 0, [&](const Group& group, Workspace& s) {
    code.load(group.number, s.pool<N>());
    decode(s, w);
    store<kImage>(s.up<N>(), group.number, code.count, logits->typed_data());
  });
  return ffi::Error::Success();
}

// SOAP's update of kernels, whose sides are three numbers for each row of the arrays. The results
// are in the places of the arrays: of the gradients, which become the directions, and of the state.
ffi::Error Soap(Floats numbers, ffi::RemainingArgs, ffi::RemainingRets results,
                ffi::Span<const int64_t> sides) {
  Numbers number;
  std::memcpy(&number, numbers.typed_data(), sizeof number);
  float* arrays[9];
  for (int i = 0; i < 9; i++) arrays[i] = results.get<Floats>(i).value()->typed_data();
  const auto& [gradient, mean, square, f0, f1, f2, b0, b1, b2] = arrays;
  const auto padded = results.get<Floats>(0).value()->dimensions();
  const Arrays all{gradient, mean, square, {f0, f1, f2}, {b0, b1, b2}, padded.begin() + 1};
  thread_local SoapRoom room;
  for (int64_t kernel = 0; kernel < padded[0]; kernel++)
    Update(number, all, kernel, sides.begin() + 3 * kernel, room)();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_bce_and_grad, ValueAndGrad<false>);
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_mse_and_grad, ValueAndGrad<true>);
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_losses, Losses);
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_encode, Encode);
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_decode, Decode);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cae_soap, Soap,
    ffi::Ffi::Bind().Arg<Floats>().RemainingArgs().RemainingRets().Attr<ffi::Span<const int64_t>>(
        "sides"));
