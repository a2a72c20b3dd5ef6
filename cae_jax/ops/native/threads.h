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
  // What a group offers, by layers.
  struct Offers {
    std::atomic<State> layers[kLayers + 1]{};
    const Workspace* workspace;
    float* gradient;
  };

  const int64_t groups;
  std::atomic<int64_t> next{0};
  std::atomic<int> waiting{0};
  std::latch unfinished;
  std::vector<Offers> offers;

  explicit Shared(int64_t groups) : groups(groups), unfinished(groups), offers(groups) {}

  static bool take(Offers& group, int layer) {
    State state = kOffered;  // read first: an exchange would take the line from other caches
    return group.layers[layer].load(std::memory_order_relaxed) == kOffered &&
           group.layers[layer].compare_exchange_strong(state, kTaken);
  }

  // Parts of groups of other threads, until no group is left.
  void help(Workspace& room) {
    for (waiting++; !unfinished.try_wait(); std::this_thread::yield())
      for (Offers& group : offers)
        each<2, kLayers>([&]<int layer>() {
          if (!take(group, layer)) return;
          waiting--;
          kernel_gradient<layer>(*group.workspace, room, group.gradient);
          group.layers[layer] = kNone;
          waiting++;
        });
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
        kernel_gradient<layer>(s, s, gradient);
    });
    each<2, kLayers>([&]<int layer>() {
      if (shared.take(group, layer)) {
        kernel_gradient<layer>(s, s, gradient);
        group.layers[layer] = Shared::kNone;
      }
    });
    for (auto& layer : group.layers)  // of which others are in work
      while (layer != Shared::kNone) std::this_thread::yield();
  }
};

// The CPUs that a container may use, of a machine with perhaps more (Linux, cgroup v2).
int64_t quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double time, period;  // "max 100000" without a quota
  return file >> time >> period ? time / period : std::numeric_limits<int64_t>::max();
}

// Calls work(group, workspace) for all groups, in the threads of the pool and this one; with
// `parts` more threads than groups get something to do. Waits for the groups only, not for the
// threads: where all of them are busy, this one does everything, and what starts after the last
// group finds `shared` still there and no group left.
template <class ThreadPool>
void for_groups(ThreadPool& pool, int64_t groups, bool parts,
                const std::function<void(const Group&, Workspace&)>& work) {
  auto shared = std::make_shared<Shared>(groups);
  auto take_groups = [shared, parts, &work] {
    thread_local Workspace workspace;
    for (int64_t group; (group = shared->next++) < shared->groups;) {
      work({*shared, group}, workspace);
      shared->unfinished.count_down();
    }
    if (parts) shared->help(workspace);
  };
  // Threads that wait for parts use up a quota, so that there are no more of them than it allows.
  static const int64_t allowed = quota();
  const int64_t most = parts ? std::max(groups, std::min(2 * groups, allowed)) : groups;
  for (int64_t t = 1; t < std::min<int64_t>(pool.num_threads(), most); t++)
    pool.Schedule([take_groups] { take_groups(); });
  take_groups();
  shared->unfinished.wait();
}

}  // namespace
