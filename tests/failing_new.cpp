// operator new that fails when asked to: loaded before a Python process, it fails the k-th
// allocation made by the module whose file name contains `module`. Compiled by
// tests/test_faults_native.py.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> left{-1}, seen{0};  // left < 0: none fails, and none is counted
char module_name[256];

void* allocate(std::size_t bytes, std::size_t alignment, void* caller) {
  Dl_info info;
  if (left.load() >= 0 && dladdr(caller, &info) && std::strstr(info.dli_fname, module_name)) {
    ++seen;
    if (left.fetch_sub(1) == 1) throw std::bad_alloc();
    if (left.load() < 0) left = 0;
  }
  void* memory =
      alignment ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                : std::malloc(bytes ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

// k = 0 counts; k < 0 stops. Returns how many there were since the last call.
extern "C" long fail_new(long k, const char* module) {
  std::strncpy(module_name, module, sizeof module_name - 1);
  left = k < 0 ? -1 : k;
  return seen.exchange(0);
}

void* operator new(std::size_t n) { return allocate(n, 0, __builtin_return_address(0)); }
void* operator new[](std::size_t n) { return allocate(n, 0, __builtin_return_address(0)); }
void* operator new(std::size_t n, std::align_val_t a) {
  return allocate(n, static_cast<std::size_t>(a), __builtin_return_address(0));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return allocate(n, static_cast<std::size_t>(a), __builtin_return_address(0));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
