// Groups of images, spread over threads; and parts of a group, where threads have nothing else to
// do.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <fstream>
#include <functional>
#include <latch>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "network.h"

namespace {

// What the threads of a call share. A group offers the derivatives with respect to its kernels
// while a thread without a group waits; at its end it computes those that nobody has taken.
struct Shared {
  enum State { kNone, kOffered, kTaken };
  // What a group offers, by layers; in a line of the cache that no other group writes.
  struct alignas(64) Offers {
    std::atomic<State> layers[kLayers + 1]{};
    const Workspace* workspace;
    float* gradient;
  };

  const int64_t groups;
  std::atomic<int64_t> next{0}, offering;  // groups that may offer something yet
  std::atomic<int> waiting{0};
  std::latch unfinished;
  std::vector<Offers> offers;

  explicit Shared(int64_t groups)
      : groups(groups), offering(groups), unfinished(groups), offers(groups) {}

  static bool take(Offers& group, int layer) {
    State state = kOffered;
    // Read first: a failed exchange would take the line from other caches.
    return group.layers[layer].load(std::memory_order_relaxed) == kOffered &&
           group.layers[layer].compare_exchange_strong(state, kTaken);
  }

  // Takes parts of groups of other threads, until no group offers any. Begins with the last layers,
  // the owner with the first ones.
  void help(Room& room) {
    waiting++;
    for (bool more = true; more; std::this_thread::yield()) {
      more = offering > 0;  // read before the offers: at 0 there come no others
      for (Offers& group : offers)
        each_down<kLayers, 2>([&]<int layer>() {
          if (!take(group, layer)) return;
          waiting--;
          kernel_gradient<layer>(*group.workspace, room, group.gradient);
          group.layers[layer] = kNone;
          waiting++;
          more = true;
        });
    }
    waiting--;
  }
};

// A group of a call, for the thread that has taken it.
struct Group {
  Shared& shared;
  const int64_t number;

  // The gradient of a group whose forward pass is done.
  void backward(Workspace& s, const Weights& w, float* gradient) const {
    Shared::Offers& group = shared.offers[number];
    group.workspace = &s, group.gradient = gradient;
    ::backward(s, w, gradient, [&]<int layer>() {
      if (shared.waiting > 0)
        group.layers[layer] = Shared::kOffered;
      else
        kernel_gradient<layer>(s, s.room, gradient);
      if (layer == 2) shared.offering--;
    });
    each<2, kLayers>([&]<int layer>() {
      if (shared.take(group, layer)) {
        kernel_gradient<layer>(s, s.room, gradient);
        group.layers[layer] = Shared::kNone;
      }
    });
    for (auto& layer : group.layers)  // of which others are in work
      while (layer != Shared::kNone) std::this_thread::yield();
  }
};

// How many threads may wait for parts of groups: those of a container's quota (Linux, cgroup v2),
// of a machine with perhaps more CPUs, because waiting uses it up.
int64_t helpers() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double time, period;
  if (!(file >> time >> period)) return std::numeric_limits<int64_t>::max();  // "max 100000"
  return time < 2 * period ? 0 : time / period;
}

// Calls work(group, workspace) for all groups, in the threads of the pool and this one; then up to
// `helpers` of these threads take parts of groups, which Group::backward offers. Waits for the
// groups only, not for the threads: where all of them are busy, this one does everything, and what
// starts after the last group finds `shared` still there and no group left.
template <class ThreadPool>
void for_groups(ThreadPool& pool, int64_t groups, int64_t helpers,
                const std::function<void(const Group&, Workspace&)>& work) {
  auto shared = std::make_shared<Shared>(groups);
  auto take_groups = [shared, &work](bool helps) {
    for (int64_t group; (group = shared->next++) < shared->groups;) {
      thread_local Workspace workspace;
      work({*shared, group}, workspace);
      shared->unfinished.count_down();
    }
    if (helps && shared->offering > 0) {
      thread_local Room room;
      shared->help(room);
    }
  };
  const int64_t most = std::max(groups, std::min(2 * groups, helpers));
  for (int64_t t = 1; t < std::min<int64_t>(pool.num_threads(), most); t++)
    pool.Schedule([take_groups, helps = t < helpers] { take_groups(helps); });
  take_groups(helpers > 0);
  shared->unfinished.wait();
}

}  // namespace
