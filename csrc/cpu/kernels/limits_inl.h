// What a core can do at most with an instruction set: reading memory, multiplying small integers,
// multiplying 16-bit floats. Benchmarks divide by it.
//
// The products run in registers, in twelve independent chains (four of AVX2's bytes), so that the
// multipliers' throughput and not their latency shows. Written as assembly: a compiler would drop
// products that nobody reads. They are the instructions of this file's instruction set, or, for
// bf16, what its CPUs may have besides; ops/limits.cpp asks the CPU before it calls.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/simd_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// Reads all of [p, p + bytes); bytes is a multiple of 512. The sum keeps the loads from vanishing.
static int32_t read_limit(const uint8_t* p, int64_t bytes) {
  I sum[8];
  for (int j = 0; j < 8; ++j) sum[j] = set_i(0);
  for (int64_t i = 0; i < bytes; i += 512) {
    for (int j = 0; j < 8; ++j) {
      sum[j] = bxor(sum[j], load_i(p + i + 64 * j));
      __builtin_prefetch(p + i + 64 * j + 4096);  // a prefetch beyond the end reads nothing
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = bxor(sum[0], sum[j]);
  int32_t lanes[16];
  store_i(lanes, sum[0]);
  return lanes[0];
}

#if defined(KT_ISA_AVX512) || defined(KT_ISA_AVX2)

#if defined(KT_ISA_AVX512)
#define KT_REGISTER(n) "%%zmm" #n
#else
#define KT_REGISTER(n) "%%ymm" #n
#endif
#define KT_CHAIN(op, n) op " " KT_REGISTER(12) ", " KT_REGISTER(13) ", " KT_REGISTER(n) "\n"
#define KT_TWELVE(op)                                                                            \
  asm volatile(KT_CHAIN(op, 0) KT_CHAIN(op, 1) KT_CHAIN(op, 2) KT_CHAIN(op, 3) KT_CHAIN(op, 4)   \
                   KT_CHAIN(op, 5) KT_CHAIN(op, 6) KT_CHAIN(op, 7) KT_CHAIN(op, 8)               \
                       KT_CHAIN(op, 9) KT_CHAIN(op, 10) KT_CHAIN(op, 11)::                       \
                   : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",     \
                     "xmm9", "xmm10", "xmm11")
// Zeroes both factors, to the last of their bits.
#define KT_CLEAR                                                                                 \
  asm volatile("vpxor %%xmm12, %%xmm12, %%xmm12\nvpxor %%xmm13, %%xmm13, %%xmm13\n" ::           \
                   : "xmm12", "xmm13")

static void float_limit(int64_t rounds) {
  KT_CLEAR;
  for (int64_t i = 0; i < rounds; ++i) KT_TWELVE("vfmadd231ps");
}

#if defined(KT_ISA_AVX512) || defined(KT_VNNI)
#if defined(KT_ISA_AVX512) || defined(KT_VNNI_EVEX)
#define KT_DOT_BYTES "vpdpbusd"
#else
#define KT_DOT_BYTES "%{vex%} vpdpbusd"
#endif
static void int8_limit(int64_t rounds) {
  KT_CLEAR;
  for (int64_t i = 0; i < rounds; ++i) KT_TWELVE(KT_DOT_BYTES);
}
#undef KT_DOT_BYTES
#else
// Bytes to pairs to fours to sums: the dot product of four bytes without VNNI.
#define KT_FOUR(n)                              \
  "vpmaddubsw %%ymm8, %%ymm9, %%ymm" #n "\n"    \
  "vpmaddwd %%ymm8, %%ymm" #n ", %%ymm" #n "\n" \
  "vpaddd %%ymm" #n ", %%ymm1" #n ", %%ymm1" #n "\n"
static void int8_limit(int64_t rounds) {
  asm volatile("vpxor %%ymm8, %%ymm8, %%ymm8\nvpxor %%ymm9, %%ymm9, %%ymm9\n" ::: "xmm8", "xmm9");
  for (int64_t i = 0; i < rounds; ++i)
    asm volatile(KT_FOUR(0) KT_FOUR(1) KT_FOUR(2) KT_FOUR(3)::
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm10", "xmm11", "xmm12", "xmm13");
}
#undef KT_FOUR
#endif

// Two operations per product: 64 (32) bytes, 32 pairs of bf16, 16 (8) floats, twelve (four) times.
#if defined(KT_ISA_AVX512)
static void bf16_limit(int64_t rounds) {
  KT_CLEAR;
  for (int64_t i = 0; i < rounds; ++i) KT_TWELVE("vdpbf16ps");
}
constexpr LimitKernels kLimits = {&read_limit, &int8_limit, 12 * 128, &bf16_limit, 12 * 64,
                                  &float_limit, 12 * 32};
#elif defined(KT_VNNI)
constexpr LimitKernels kLimits = {&read_limit, &int8_limit, 12 * 64, nullptr, 0,
                                  &float_limit, 12 * 16};
#else
constexpr LimitKernels kLimits = {&read_limit, &int8_limit, 4 * 64, nullptr, 0,
                                  &float_limit, 12 * 16};
#endif
#undef KT_CLEAR
#undef KT_TWELVE
#undef KT_CHAIN
#undef KT_REGISTER

#else

constexpr LimitKernels kLimits = {&read_limit, nullptr, 0, nullptr, 0, nullptr, 0};

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
