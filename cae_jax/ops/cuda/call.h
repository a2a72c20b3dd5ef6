// From the buffers of an XLA call to what a kernel takes.

#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "array.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// The arrays of a call, arguments before results, and the number of models. A buffer is
// [..., rows, values], before which jax.vmap puts the models, 1 where all have the same.
struct Call {
  std::vector<Array> arrays;
  int64_t models = 1;

  ffi::Error read(ffi::RemainingArgs arguments, ffi::RemainingRets results) {
    for (size_t i = 0; i < arguments.size(); i++) {
      auto buffer = arguments.get<ffi::AnyBuffer>(i);
      if (buffer.has_error()) return buffer.error();
      if (!add(*buffer)) return ffi::Error::InvalidArgument("no rows, or two numbers of models");
    }
    for (size_t i = 0; i < results.size(); i++) {
      auto buffer = results.get<ffi::AnyBuffer>(i);
      if (buffer.has_error()) return buffer.error();
      if (!add(**buffer)) return ffi::Error::InvalidArgument("no rows, or two numbers of models");
    }
    return ffi::Error::Success();
  }

 private:
  bool add(const ffi::AnyBuffer& buffer) {
    const auto shape = buffer.dimensions();
    if (shape.size() < 2) return false;
    int64_t here = 1;
    for (size_t i = 0; i + 2 < shape.size(); i++) here *= shape[i];
    const int64_t rows = shape[shape.size() - 2], values = shape[shape.size() - 1];
    if (here > 1 && models > 1 && here != models) return false;
    if (here > 1) models = here;
    arrays.push_back({buffer.untyped_data(), rows, here > 1 ? rows * values : 0,
                      buffer.element_type() == ffi::DataType::U8});
    return true;
  }
};

// The attributes and buffers of a call, see `_launch` in __init__.py, after what a binding has.
template <class Binding>
auto with_call(Binding binding) {
  return std::move(binding)
      .template Attr<std::string_view>("key")
      .template Attr<std::string_view>("kernel")
      .template Attr<int64_t>("blocks")
      .template Attr<int64_t>("threads")
      .template Attr<int64_t>("shared")
      .RemainingArgs()
      .RemainingRets();
}

}  // namespace
