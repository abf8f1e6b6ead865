// For the host build of a .cu: gives its __global__ functions a grid of plain loops, and exports them to libcuda.c.
// Included before the .cu; HOST_KERNEL(name) for each kernel comes after it.
#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#define __global__
#define __device__
struct Index3 { unsigned x, y, z; };
static thread_local Index3 threadIdx, blockIdx, blockDim;

struct HostKernel {  // `Kernel` in libcuda.c
  int parameters;
  const unsigned *sizes, *offsets;
  void (*run)(const char*, const unsigned*);
};

template <auto KERNEL, class = decltype(KERNEL)>
struct Host;
template <auto KERNEL, class... A>
struct Host<KERNEL, void (*)(A...)> {
  static constexpr unsigned count = sizeof...(A);
  static constexpr unsigned sizes[] = {sizeof(A)...};
  struct Offsets {
    unsigned at[count] = {};
    constexpr Offsets() {
      unsigned end = 0;
      for (unsigned i = 0; i < count; ++i) {
        at[i] = (end + sizes[i] - 1) / sizes[i] * sizes[i];  // every argument is a scalar or a pointer
        end = at[i] + sizes[i];
      }
    }
  };
  static constexpr Offsets offsets{};
  static void run(const char* arguments, const unsigned* d) {
    std::tuple<A...> values;
    unsigned i = 0;
    std::apply([&](auto&... v) { ((std::memcpy(&v, arguments + offsets.at[i], sizeof v), ++i), ...); }, values);
    blockDim = {d[3], d[4], d[5]};
    for (unsigned b = 0; b < d[0] * d[1] * d[2]; ++b)
      for (unsigned t = 0; t < d[3] * d[4] * d[5]; ++t) {
        blockIdx = {b % d[0], b / d[0] % d[1], b / d[0] / d[1]};
        threadIdx = {t % d[3], t / d[3] % d[4], t / d[3] / d[4]};
        std::apply(KERNEL, values);
      }
  }
};
#define HOST_KERNEL(NAME)                                               \
  extern "C" const HostKernel NAME##__host;                             \
  const HostKernel NAME##__host = {Host<&NAME>::count, Host<&NAME>::sizes, Host<&NAME>::offsets.at, Host<&NAME>::run};
