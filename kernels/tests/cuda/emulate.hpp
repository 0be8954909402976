// What generated CUDA C++ finds instead of NVIDIA's headers. It is compiled with g++, its loads and stores
// instrumented; emulator.hpp says what happens to them.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define warpSize 32
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif

struct uint3 {
    unsigned x, y, z;
};

// What the machine does for the kernel: its own loads and stores are not the kernel's.
#define EMULATED_PLAIN __attribute__((no_sanitize("thread"), no_sanitize("alignment")))

namespace emulated {

// Where threads meet. `line` tells call sites apart: threads that meet at different lines have diverged.
using Complete = void (*)(void** lanes, unsigned mask, int line);
uint3 thread_index();
uint3 block_index();
uint3 grid_size();
uint3 block_size();
void sync_block(int line, unsigned barrier = 0);
// All lanes of a warp that arrive at `line` with that operation; `complete` runs once, for all of them.
void meet(int line, Complete complete, void* lane);
void sync_warp(int line, unsigned mask);
unsigned active(int line);
void shuffle(int line, unsigned mask, void* value, unsigned size, int how, unsigned by);
unsigned vote(int line, unsigned mask, bool value);
// Declares `bytes` at an offset of the block's memory, and yields its start.
char* shared(size_t offset, size_t bytes);
unsigned shared_address(const void* p);
// A load or a store that no instruction of the text makes: of fragments and of inline PTX.
void reads(const void* p, size_t bytes, int line);
void writes(const void* p, size_t bytes, int line);
// An atomic instruction: it may meet others of its kind.
void changes(const void* p, size_t bytes, int line);
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(int line, const char* format, ...);

// An operand of inline PTX: its address and its bytes.
struct Operand {
    void* at;
    unsigned bytes;
};
void ptx(int line, const char* text, const Operand* operands, unsigned outs, unsigned count);

// A part of the block's memory, as the text declares one.
template <typename T> T* claim(size_t offset) { return reinterpret_cast<T*>(shared(offset, sizeof(T))); }

// Fibres change places where threads meet only: nothing comes between the load and the store.
template <typename T, typename F> EMULATED_PLAIN T atomically(int line, T* p, F next) {
    changes(p, sizeof(T), line);
    const T old = *p;
    *p = next(old);
    return old;
}

template <typename T> T shuffled(int line, unsigned mask, T value, int how, unsigned by) {
    shuffle(line, mask, &value, sizeof(T), how, by);
    return value;
}

} // namespace emulated

#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::block_index())
#define gridDim (emulated::grid_size())
#define blockDim (emulated::block_size())
#define __syncthreads() emulated::sync_block(__LINE__)
#define __syncwarp(...) emulated::sync_warp(__LINE__, ~0u)
#define __activemask() emulated::active(__LINE__)
#define __shfl_sync(m, v, l) emulated::shuffled(__LINE__, m, v, 0, l)
#define __shfl_xor_sync(m, v, l) emulated::shuffled(__LINE__, m, v, 1, l)
#define __shfl_up_sync(m, v, l) emulated::shuffled(__LINE__, m, v, 2, l)
#define __shfl_down_sync(m, v, l) emulated::shuffled(__LINE__, m, v, 3, l)
#define __ballot_sync(m, v) emulated::vote(__LINE__, m, v)
#define __any_sync(m, v) (emulated::vote(__LINE__, m, v) != 0)
#define __all_sync(m, v) (emulated::vote(__LINE__, m, !(v)) == 0)
#define EMULATED_ATOMIC(p, then) (emulated::atomically(__LINE__, p, [&](auto old) EMULATED_PLAIN { return decltype(old)(then); }))
#define atomicExch(p, v) EMULATED_ATOMIC(p, v)
#define atomicAdd(p, v) EMULATED_ATOMIC(p, old + (v))
#define atomicSub(p, v) EMULATED_ATOMIC(p, old - (v))
#define atomicAnd(p, v) EMULATED_ATOMIC(p, old & (v))
#define atomicOr(p, v) EMULATED_ATOMIC(p, old | (v))
#define atomicXor(p, v) EMULATED_ATOMIC(p, old ^ (v))
#define atomicMin(p, v) EMULATED_ATOMIC(p, old < (v) ? old : (v))
#define atomicMax(p, v) EMULATED_ATOMIC(p, old < (v) ? (v) : old)
#define atomicCAS(p, was, v) EMULATED_ATOMIC(p, old == (was) ? (v) : old)
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)
#define __cvta_generic_to_shared(p) emulated::shared_address(p)

#define EMULATED_ORDER(T)                                                                                              \
    inline T min(T a, T b) { return b < a ? b : a; }                                                                  \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_ORDER(int)
EMULATED_ORDER(unsigned)
EMULATED_ORDER(long)
EMULATED_ORDER(unsigned long)
EMULATED_ORDER(long long)
EMULATED_ORDER(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline float rhypotf(float x, float y) { return 1.0f / hypotf(x, y); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }

#include "halves.hpp"
#include "wmma.hpp"

inline float __uint_as_float(unsigned x) { return emulated::float_of(x); }
inline unsigned __float_as_uint(float x) { return emulated::bits_of(x); }

namespace emulated {

// The call itself is the machine's, not the kernel's.
template <typename P> struct Argument {
    EMULATED_PLAIN static P of(void* p) { return *static_cast<P*>(p); }
};
template <typename T> struct Argument<T*> {
    EMULATED_PLAIN static T* of(void* p) { return static_cast<T*>(p); }
};
template <size_t... I> struct Places {};
template <size_t N, size_t... I> struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I> struct Count<0, I...> {
    using Of = Places<I...>;
};
template <typename... P, size_t... I> EMULATED_PLAIN void call(void (*kernel)(P...), void** arguments, Places<I...>) {
    kernel(Argument<P>::of(arguments[I])...);
}
// Calls the kernel with buffers in the order of its parameters.
template <typename... P> EMULATED_PLAIN void call(void (*kernel)(P...), void** arguments) {
    call(kernel, arguments, typename Count<sizeof...(P)>::Of());
}
template <typename... P> constexpr unsigned parameters(void (*)(P...)) { return sizeof...(P); }

} // namespace emulated
