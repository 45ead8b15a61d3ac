// Blocks and threads of CUDA kernels on the host: one block at a time, one fiber a thread, switched
// at every barrier and shuffle. Under ThreadSanitizer every fiber is a thread to it, and only
// barriers put their accesses in order (shuffles and votes do not, nor do relaxed atomics); two
// workers take every other block there, and between blocks of one nothing is found: they are in
// order.
#pragma once
#include <driver_types.h>
#include <setjmp.h>
#include <ucontext.h>
#include <vector_types.h>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

// One block at a time on one OS thread: a static is shared by the block.
#if defined(__SANITIZE_THREAD__)
#define EMULATION_LOCAL static thread_local
#define EMULATION_UNWATCHED __attribute__((no_sanitize("thread")))
#else
#define EMULATION_LOCAL static
#define EMULATION_UNWATCHED
#endif

namespace emulation {

// What a thread did before it arrives comes before what others do after they have left.
inline void arrive([[maybe_unused]] void* barrier) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(barrier);
#endif
}
inline void leave([[maybe_unused]] void* barrier) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(barrier);
#endif
}

enum class Waits { no, block, warp };

struct Fiber {
  ucontext_t context = {};  // AddressSanitizer clears what it says is the stack
  jmp_buf left;
  bool running = false;     // it has begun, and left from `left`
  void* watched = nullptr;  // what ThreadSanitizer knows it as
};

// swapcontext asks the kernel for the signal mask at every switch, which takes longer than all
// else; but sanitizers know the stacks that swapcontext leaves, and not those that longjmp does.
EMULATION_UNWATCHED __attribute__((noinline)) inline void switch_fibers(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.watched, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  swapcontext(&from.context, &to.context);
#else
  from.running = true;
  if (_setjmp(from.left)) return;
  if (to.running) _longjmp(to.left, 1);
  setcontext(&to.context);
#endif
}

struct Thread : Fiber {
  dim3 id;
  unsigned index = 0, lane = 0, warp = 0;
  bool done = false;
  Waits waits = Waits::no;
  uint64_t slot = 0;          // what the thread offers to the others of its warp
  unsigned barriers[2] = {};  // how many it has left: of the block, of its warp
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<char> stacks, shared;
  std::function<void()> body;
  Fiber scheduler;
  Thread* running = nullptr;
  dim3 id, size, grid;
  char begun, ended, barriers[33][2];  // the last of the warps and the block, by turns
};

inline Block*& block() {
  EMULATION_LOCAL Block* current = nullptr;
  return current;
}
EMULATION_UNWATCHED inline Thread& me() { return *block()->running; }

EMULATION_UNWATCHED inline void enter() {
  Block* b = block();
  Thread* mine = b->running;
  leave(&b->begun);
  b->body();
  arrive(&b->ended);
  mine->done = true;
  switch_fibers(*mine, b->scheduler);
}

EMULATION_UNWATCHED inline void wait(Waits what) {
  Block* b = block();
  Thread* mine = b->running;
  mine->waits = what;
  switch_fibers(*mine, b->scheduler);
}

EMULATION_UNWATCHED inline void barrier(Waits what) {
  Block* b = block();
  Thread* mine = b->running;
  const bool all = what == Waits::block;
  void* turn = &b->barriers[all ? 32 : mine->warp][mine->barriers[all]++ % 2];
  arrive(turn);
  wait(what);
  leave(turn);
}

inline bool reversed() {
  static const bool value = [] {
    const char* set = std::getenv("PYTTC_EMULATE_REVERSE");
    return set && *set == '1';
  }();
  return value;
}

inline cudaError_t& last_error() {
  static cudaError_t error = cudaSuccess;
  return error;
}

// The dynamic shared memory that a kernel may be launched with.
inline size_t& allowed(const void* kernel) {
  static std::map<const void*, size_t> bytes;
  return bytes.emplace(kernel, 48 << 10).first->second;
}

inline size_t most_shared() {
  const char* set = std::getenv("PYTTC_EMULATE_SHARED");
  return set ? std::strtoull(set, nullptr, 10) : 99 << 10;
}

EMULATION_UNWATCHED inline bool release(Block& b, size_t from, size_t to, Waits what) {
  bool any = false;
  for (size_t i = from; i < to; ++i) {
    if (b.threads[i]->done) continue;
    any = true;
    if (b.threads[i]->waits != what) return false;
  }
  for (size_t i = from; any && i < to; ++i) b.threads[i]->waits = Waits::no;
  return any;
}

EMULATION_UNWATCHED inline void run(Block& b) {
  const size_t n = b.threads.size();
  for (size_t left = n; left;) {
    bool progress = false;
    for (size_t k = 0; k < n; ++k) {
      Thread* t = b.threads[reversed() ? n - 1 - k : k].get();
      if (t->done || t->waits != Waits::no) continue;
      b.running = t;
      switch_fibers(b.scheduler, *t);
      progress = true;
      left -= t->done;
    }
    for (size_t warp = 0; warp < n; warp += 32)
      progress |= release(b, warp, std::min(n, warp + 32), Waits::warp);
    if (release(b, 0, n, Waits::block)) progress = true;
    if (left && !progress) {
      std::fprintf(stderr, "emulation: divergent barrier in block (%u, %u, %u)\n", b.id.x, b.id.y,
                   b.id.z);
      std::abort();
    }
  }
}

// Every step-th block from `first` on.
inline void run_blocks(uint64_t first, uint64_t step, dim3 grid, dim3 size, size_t shared_bytes,
                       const std::function<void()>& body) {
  constexpr size_t kStack = 64 << 10;
  const unsigned n = size.x * size.y * size.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  Block b;
  b.size = size;
  b.grid = grid;
  b.body = body;
  b.stacks.resize(n * kStack);
  block() = &b;
#if defined(__SANITIZE_THREAD__)
  b.scheduler.watched = __tsan_get_current_fiber();
  static std::vector<void*> made[2];  // to make them takes long
  std::vector<void*>& watched = made[first];
  while (watched.size() < n) watched.push_back(__tsan_create_fiber(0));
#endif
  for (uint64_t k = first; k < blocks; k += step) {
    const uint64_t i = reversed() ? blocks - 1 - k : k;
    b.id = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    b.shared.assign(shared_bytes + 1024, static_cast<char>(0xff));  // NaN, not zero
    b.threads.clear();
    for (unsigned j = 0; j < n; ++j) {
      auto t = std::make_unique<Thread>();
      t->index = j;
      t->id = dim3(j % size.x, j / size.x % size.y, j / size.x / size.y);
      t->lane = j % 32;
      t->warp = j / 32;
      getcontext(&t->context);
      t->context.uc_stack.ss_sp = b.stacks.data() + j * kStack;
      t->context.uc_stack.ss_size = kStack;
      t->context.uc_link = nullptr;
      makecontext(&t->context, enter, 0);
#if defined(__SANITIZE_THREAD__)
      t->watched = watched[j];
#endif
      b.threads.push_back(std::move(t));
    }
    arrive(&b.begun);
    run(b);
    leave(&b.ended);
  }
  block() = nullptr;
}

template <class F>
void launch(const void* kernel, dim3 grid, dim3 size, size_t shared_bytes, F body) {
  const unsigned n = size.x * size.y * size.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (!blocks || !n || grid.x >> 31 || grid.y >> 16 || grid.z >> 16 || n > 1024 ||
      shared_bytes > allowed(kernel)) {
    last_error() = cudaErrorInvalidConfiguration;
    return;
  }
#if defined(__SANITIZE_THREAD__)
  std::thread other(run_blocks, 1, 2, grid, size, shared_bytes, body);
  run_blocks(0, 2, grid, size, shared_bytes, body);
  other.join();
#else
  run_blocks(0, 1, grid, size, shared_bytes, body);
#endif
}

// What lane `source` of this warp offers; every live lane must take part.
template <class T>
EMULATION_UNWATCHED T exchange(T value, int source) {
  static_assert(sizeof(T) <= 8);
  Block* b = block();
  Thread* mine = b->running;
  mine->slot = 0;
  std::memcpy(&mine->slot, &value, sizeof(T));
  wait(Waits::warp);
  const size_t j = mine->warp * 32 + (source & 31);
  T result;
  std::memcpy(&result, &b->threads[j < b->threads.size() ? j : mine->index]->slot, sizeof(T));
  wait(Waits::warp);
  return result;
}

inline char* shared_memory() {
  const auto p = reinterpret_cast<uintptr_t>(block()->shared.data());
  return reinterpret_cast<char*>((p + 1023) & ~uintptr_t{1023});
}

inline int lane() { return static_cast<int>(me().lane); }

}  // namespace emulation
