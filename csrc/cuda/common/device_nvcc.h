// device.h for nvcc: PTX and intrinsics behind the names device.h lists. sm_75 has no cp.async, no
// bf16 arithmetic and smaller tensor-core steps; the functions below make up for the first and the
// last, and kernels of bf16_t are refused by the host code there.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "base/error.h"
#include "cuda/common/cuda_error.h"

#define KT_DEVICE __device__ __forceinline__
#define KT_HOST_DEVICE __host__ __device__ __forceinline__
#define KT_UNROLL _Pragma("unroll")

namespace kt::cuda {

KT_DEVICE unsigned thread_id() { return threadIdx.x; }
KT_DEVICE unsigned lane_id() { return threadIdx.x % 32; }
KT_DEVICE unsigned warp_id() { return threadIdx.x / 32; }
KT_DEVICE unsigned block_x() { return blockIdx.x; }
KT_DEVICE unsigned block_y() { return blockIdx.y; }
KT_DEVICE unsigned block_z() { return blockIdx.z; }
KT_DEVICE unsigned grid_x() { return gridDim.x; }
KT_DEVICE unsigned grid_y() { return gridDim.y; }
KT_DEVICE unsigned block_threads() { return blockDim.x; }

KT_DEVICE void sync() { __syncthreads(); }
KT_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
using Shared = T*;
template <class T>
using Global = T*;

template <class T>
KT_DEVICE T* shared_at(size_t byte) {
  extern __shared__ __align__(1024) uint8_t kt_shared_memory[];
  return reinterpret_cast<T*>(kt_shared_memory + byte);
}
template <class U, class T>
KT_DEVICE U* shared_cast(T* p) {
  return reinterpret_cast<U*>(p);
}
template <class U, class T>
KT_DEVICE U* global_cast(T* p) {
  return reinterpret_cast<U*>(p);
}

KT_DEVICE Words4 load_once(const Words4* p) {
  Words4 v;
#if __CUDA_ARCH__ >= 800
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(p));
#else
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(p));
#endif
  return v;
}

KT_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <class T, class U>
KT_DEVICE void async_copy16(T* target, const U* source, bool present = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)),
               "l"(source), "r"(present ? 16 : 0)
               : "memory");
#else
  *reinterpret_cast<Words4*>(target) =
      present ? *reinterpret_cast<const Words4*>(source) : Words4{{0, 0, 0, 0}};
#endif
}
template <class T, class U>
KT_DEVICE void async_copy16_once(T* target, const U* source, bool present = true) {
#if __CUDA_ARCH__ >= 800
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(
                   shared_address(target)),
               "l"(source), "r"(present ? 16 : 0), "l"(policy)
               : "memory");
#else
  async_copy16(target, source, present);
#endif
}
KT_DEVICE void async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroupsLeft>
KT_DEVICE void async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

template <class T>
KT_DEVICE T shuffle(T value, unsigned from) {
  return __shfl_sync(0xFFFFFFFFu, value, from);
}
template <class T>
KT_DEVICE T shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
template <class T>
KT_DEVICE T shuffle_up(T value, unsigned delta) {
  return __shfl_up_sync(0xFFFFFFFFu, value, delta);
}
KT_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xFFFFFFFFu, predicate); }

KT_DEVICE float to_float(float v) { return v; }
KT_DEVICE float to_float(half_t v) { return __half2float(__ushort_as_half(v.bits)); }
KT_DEVICE float to_float(bf16_t v) { return __uint_as_float(uint32_t{v.bits} << 16); }
KT_DEVICE float to_float(fp8_t v) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(v.bits, __NV_E4M3)));
}
template <class T>
KT_DEVICE T from_float(float v);
template <>
KT_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
KT_DEVICE half_t from_float<half_t>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}
template <>
KT_DEVICE bf16_t from_float<bf16_t>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}
template <>
KT_DEVICE fp8_t from_float<fp8_t>(float v) {
  return {static_cast<uint8_t>(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3))};
}

template <class T>
KT_DEVICE uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <class T>
KT_DEVICE Float2 unpack2(uint32_t v) {
  return {{to_float(T{static_cast<uint16_t>(v)}), to_float(T{static_cast<uint16_t>(v >> 16)})}};
}

template <class T>
struct PairOps;
template <>
struct PairOps<half_t> {
  KT_DEVICE static __half2 of(uint32_t v) { return *reinterpret_cast<__half2*>(&v); }
  KT_DEVICE static uint32_t bits(__half2 v) { return *reinterpret_cast<uint32_t*>(&v); }
  KT_DEVICE static uint32_t fma(uint32_t a, uint32_t b, uint32_t c) {
    return bits(__hfma2(of(a), of(b), of(c)));
  }
  KT_DEVICE static uint32_t mul(uint32_t a, uint32_t b) { return bits(__hmul2(of(a), of(b))); }
  KT_DEVICE static uint32_t sub(uint32_t a, uint32_t b) { return bits(__hsub2(of(a), of(b))); }
};
template <>
struct PairOps<bf16_t> {
  KT_DEVICE static uint32_t fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
#if __CUDA_ARCH__ >= 800
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
#endif
    return d;
  }
  KT_DEVICE static uint32_t mul(uint32_t a, uint32_t b) { return fma(a, b, 0x80008000u); }  // + -0
  KT_DEVICE static uint32_t sub(uint32_t a, uint32_t b) {
    return fma(b, 0xBF80BF80u, a);  // -1 * b + a
  }
};
template <class T>
KT_DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  return PairOps<T>::fma(a, b, c);
}
template <class T>
KT_DEVICE uint32_t mul2(uint32_t a, uint32_t b) {
  return PairOps<T>::mul(a, b);
}
template <class T>
KT_DEVICE uint32_t sub2(uint32_t a, uint32_t b) {
  return PairOps<T>::sub(a, b);
}

/// In hardware from sm_89 on, in integer arithmetic before.
KT_DEVICE uint32_t fp8_to_halves(uint32_t pair) {
  const __half2_raw raw =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
  return raw.x | static_cast<uint32_t>(raw.y) << 16;
}
template <class T>
KT_DEVICE uint32_t unpack_fp8(uint32_t pair, float scale);
template <>
KT_DEVICE uint32_t unpack_fp8<half_t>(uint32_t pair, float scale) {
  return mul2<half_t>(fp8_to_halves(pair), pack2<half_t>(scale, scale));
}
template <>
KT_DEVICE uint32_t unpack_fp8<bf16_t>(uint32_t pair, float scale) {
  const Float2 values = unpack2<half_t>(fp8_to_halves(pair));
  return pack2<bf16_t>(values.x[0] * scale, values.x[1] * scale);
}

template <int kTable>
KT_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return d;
}
KT_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

KT_DEVICE float exp2_fast(float x) { return exp2f(x); }
KT_DEVICE float exp_fast(float x) { return __expf(x); }
KT_DEVICE float log_fast(float x) { return __logf(x); }
KT_DEVICE float sine(float x) { return sinf(x); }
KT_DEVICE float cosine(float x) { return cosf(x); }
KT_DEVICE float rsqrt_fast(float x) { return rsqrtf(x); }
KT_DEVICE float fma(float a, float b, float c) { return fmaf(a, b, c); }
KT_DEVICE float max(float a, float b) { return fmaxf(a, b); }
KT_DEVICE float min(float a, float b) { return fminf(a, b); }
KT_DEVICE int max(int a, int b) { return a > b ? a : b; }
KT_DEVICE int min(int a, int b) { return a < b ? a : b; }
KT_DEVICE float abs(float a) { return fabsf(a); }
KT_DEVICE float infinity() { return __int_as_float(0x7F800000); }
KT_DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
KT_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
KT_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
KT_DEVICE int count_bits(uint32_t v) { return __popc(v); }

struct FragmentA {
  uint32_t x[4];
};
struct FragmentB {
  uint32_t x[2];
};
struct FragmentD {
  float x[4];
};

template <class T>
KT_DEVICE void mma(FragmentD& d, const FragmentA& a, const FragmentB& b);
template <>
KT_DEVICE void mma<half_t>(FragmentD& d, const FragmentA& a, const FragmentB& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
#else
  // Turing multiplies half as deep: two steps of k = 8.
  for (int half = 0; half < 2; ++half)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])
        : "r"(a.x[2 * half]), "r"(a.x[2 * half + 1]), "r"(b.x[half]));
#endif
}
template <>
KT_DEVICE void mma<bf16_t>(FragmentD& d, const FragmentA& a, const FragmentB& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d.x[0]), "+f"(d.x[1]), "+f"(d.x[2]), "+f"(d.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
#else
  (void)d, (void)a, (void)b;
  __trap();  // refused by the host code
#endif
}

template <class T>
KT_DEVICE Words4 load_matrix4(T* row) {
  Words4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "r"(shared_address(row))
               : "memory");
  return v;
}
template <class T>
KT_DEVICE Words4 load_matrix4_transposed(T* row) {
  Words4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "r"(shared_address(row))
               : "memory");
  return v;
}

template <class T>
KT_DEVICE T atomic_add(T* p, T value) {
  return atomicAdd(p, value);
}
KT_DEVICE uint64_t atomic_add(uint64_t* p, uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p),
                   static_cast<unsigned long long>(value));
}
KT_DEVICE void fence() { __threadfence(); }

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(params);
}

template <class Kernel>
inline void launch(const LaunchShape& shape, const typename Kernel::Params& params, Stream stream) {
  KT_CHECK(shape.threads <= Kernel::kThreads, "a block of ", shape.threads,
           " threads, the kernel is compiled for ", Kernel::kThreads);
  if (shape.shared_bytes > 48 << 10)  // allowed while a stream is captured: it is no stream's work
    check(cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "cudaFuncSetAttribute", shape.shared_bytes);
  kernel_entry<Kernel><<<dim3(shape.grid_x, shape.grid_y, shape.grid_z), shape.threads,
                         shape.shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
  check(cudaGetLastError(), "kernel launch", shape.shared_bytes);
}

}  // namespace kt::cuda
