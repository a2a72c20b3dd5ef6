// Launches the kernels of network.cu on the stream of an XLA program.
//
// Needs no header of CUDA and no library when it is compiled or loaded: the driver's functions are
// looked up at the first call.

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "call.h"

namespace {

using Stream = void*;
using Context = void*;
using Function = void*;
constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int kRelaxed = 2;           // CU_STREAM_CAPTURE_MODE_RELAXED

struct Driver {
  int (*error_string)(int, const char**);
  int (*stream_context)(Stream, Context*);
  int (*push_context)(Context);
  int (*pop_context)(Context*);
  int (*exchange_capture_mode)(int*);
  int (*load_module)(void**, const void*);
  int (*find_function)(Function*, void*, const char*);
  int (*set_attribute)(Function, int, int);
  int (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                Stream, void**, void**);
  bool found = true;

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    auto find = [&](auto& function, const char* name) {
      function =
          library
              ? reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name))
              : nullptr;
      found = found && function;
    };
    find(error_string, "cuGetErrorString");
    find(stream_context, "cuStreamGetCtx");
    find(push_context, "cuCtxPushCurrent_v2");
    find(pop_context, "cuCtxPopCurrent_v2");
    find(exchange_capture_mode, "cuThreadExchangeStreamCaptureMode");
    find(load_module, "cuModuleLoadData");
    find(find_function, "cuModuleGetFunction");
    find(set_attribute, "cuFuncSetAttribute");
    find(launch, "cuLaunchKernel");
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

// What is wrong, if anything.
ffi::Error check(int code, const char* what) {
  if (code == 0) return ffi::Error::Success();
  const char* text = nullptr;
  driver().error_string(code, &text);
  return ffi::Error::Internal(std::string(what) + ": " + (text ? text : std::to_string(code)));
}

// The compiled kernels by key, and what is loaded of them in the contexts of the devices.
std::mutex mutex;
std::map<std::string, std::string>& images() {
  static std::map<std::string, std::string> all;
  return all;
}
std::map<std::tuple<Context, std::string>, void*> modules;
std::map<std::tuple<Context, std::string, std::string>, Function> functions;

// A kernel in the context of a stream, which is the current one.
ffi::Error load(Context context, const std::string& key, const std::string& name, int64_t shared,
                Function* function) {
  auto& module = modules[{context, key}];
  if (!module) {
    const auto image = images().find(key);
    if (image == images().end()) return ffi::Error::Internal("the kernels " + key + " are missing");
    if (auto e = check(driver().load_module(&module, image->second.data()), "loading the kernels");
        e.failure()) {
      module = nullptr;
      return e;
    }
  }
  if (auto e = check(driver().find_function(function, module, name.c_str()), name.c_str());
      e.failure())
    return e;
  return check(driver().set_attribute(*function, kMaxDynamicShared, static_cast<int>(shared)),
               "shared memory");
}

ffi::Error find(Stream stream, std::string_view key, std::string_view name, int64_t shared,
                Function* function) {
  if (!driver().found) return ffi::Error::Internal("libcuda.so.1 is missing or too old");
  Context context;
  if (auto e = check(driver().stream_context(stream, &context), "the stream"); e.failure())
    return e;
  const std::lock_guard lock(mutex);
  auto& known = functions[{context, std::string(key), std::string(name)}];
  if (!known) {
    if (auto e = check(driver().push_context(context), "the context"); e.failure()) return e;
    int mode = kRelaxed;  // else nothing can be loaded while this thread captures a graph
    Function loaded = nullptr;
    auto e = check(driver().exchange_capture_mode(&mode), "the mode of capturing");
    if (e.success()) {
      e = load(context, std::string(key), std::string(name), shared, &loaded);
      driver().exchange_capture_mode(&mode);
    }
    driver().pop_context(&context);
    if (e.failure()) return e;
    known = loaded;
  }
  *function = known;
  return ffi::Error::Success();
}

// Before the first launch, so that it takes no longer than the others.
ffi::Error Initialize(Stream stream, std::string_view key, std::string_view kernel, int64_t,
                      int64_t, int64_t shared, ffi::RemainingArgs, ffi::RemainingRets) {
  Function function;
  return find(stream, key, kernel, shared, &function);
}

ffi::Error Launch(Stream stream, std::string_view key, std::string_view kernel, int64_t blocks,
                  int64_t threads, int64_t shared, ffi::RemainingArgs arguments,
                  ffi::RemainingRets results) {
  Call call;
  if (auto e = call.read(arguments, results); e.failure()) return e;
  Function function;
  if (auto e = find(stream, key, kernel, shared, &function); e.failure()) return e;
  std::vector<void*> pointers;
  for (Array& array : call.arrays) pointers.push_back(&array);
  const auto models = static_cast<unsigned>(call.models);
  return check(driver().launch(function, blocks, models, 1, threads, 1, 1, shared, stream,
                               pointers.data(), nullptr),
               "the launch");
}

auto binding() { return with_call(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<Stream>>()); }

}  // namespace

extern "C" void cae_add(const char* key, const char* image, size_t size) {
  const std::lock_guard lock(mutex);
  images()[key] = std::string(image, size);
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_initialize, Initialize, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(cae_launch, Launch, binding(), {ffi::Traits::kCmdBufferCompatible});
