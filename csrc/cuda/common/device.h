// The one header kernel bodies are written against. nvcc compiles it to PTX; g++ compiles it to an
// emulation on fibres (emulator.h), so that the same kernel source is run by the tests of a machine
// without a GPU. What emulation proves is numerics, indexing and synchronisation; speed it cannot.
//
// A kernel is a type:
//
//   struct Scale {
//     struct Params { const float* x; float* y; int n; };
//     static constexpr int kThreads = 256;        // the largest block
//     static constexpr int kMinBlocks = 1;        // blocks per SM the registers are limited for
//     KT_DEVICE static void run(const Params& p) { ... }
//   };
//   launch<Scale>({.grid_x = blocks, .threads = 256}, params, stream);
//
// Inside run():
//   thread_id, block_x/y/z, grid_x/y, block_threads, lane_id, warp_id    where this thread is
//   sync, sync_warp                                   barriers of the block and the warp
//   shuffle, shuffle_xor, shuffle_up, ballot          32 lanes; every lane must take part
//   Shared<T>, shared_at<T>(byte), shared_cast<T>     dynamic shared memory, elements of >= 2 bytes
//   Global<T>                                         device memory: Global<const float> x(p.x)
//   load_once                                         16 bytes read once: past L1, first out of L2
//   async_copy16, async_commit, async_wait<N>         cp.async and its groups (sm_75: plain copies)
//   load_matrix4, load_matrix4_transposed             ldmatrix.x4
//   mma<T>(d, a, b)                                   m16n8k16, T half_t or bf16_t, float sums
//   atomic_add, fence                                 device memory; atomic_add: shared memory too
//   to_float, from_float<T>, pack2<T>, unpack2<T>     conversions; fma2, mul2, sub2: packed pairs
//   exp2_fast, rsqrt_fast, ...                        approximate functions; sine, cosine: exact
//
// On nvcc Shared<T> and Global<T> are plain pointers. Emulated, every access through them is
// checked: bounds, alignment, memory nobody wrote, and, for shared memory, two threads touching a
// word without a barrier between them. Hence loads go into named types (`float v = x[i];`, never
// `auto`).
#pragma once

#include "cuda/common/types.h"

#if defined(__CUDACC__)
#include "cuda/common/device_nvcc.h"
#else
#include "cuda/common/device_emulated.h"
#endif
