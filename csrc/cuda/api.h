// The CUDA library's C surface: what a program loads with dlopen (or ctypes) and calls with raw
// device pointers and a cudaStream_t. Every function returns 0, or 1 with the reason in
// kt_cuda_error(). Nothing allocates but the functions whose names say create. Types: 0 float, 1
// f16, 2 bf16.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/api_step.h"

#if defined(__GNUC__)
#define KT_API extern "C" __attribute__((visibility("default")))
#endif

/// Raised when a signature below changes.
KT_API int kt_cuda_version();
/// How many cards this library can use.
KT_API int kt_cuda_devices(int* count);
/// Of this thread's last failed call.
KT_API const char* kt_cuda_error();

/// name: at least 256 bytes. arch: 90 for compute capability 9.0.
KT_API int kt_cuda_device(int device, char* name, int* sms, int* arch, size_t* memory,
                          size_t* free_memory);

/// Device memory. Where there is no room, kt_cuda_error() tells how much was asked for.
KT_API int kt_cuda_allocate(size_t bytes, void** memory);
KT_API int kt_cuda_free(void* memory);

KT_API int kt_cuda_int4_sizes(int m, int n, int k, int group, int bf16, int sms, int arch,
                              size_t* workspace_bytes, int* counters);
KT_API int kt_cuda_int4_gemm(const void* x, const void* weights, const void* scales,
                             const void* offsets, void* y, void* workspace, void* counters, int m,
                             int n, int k, int group, int bf16, int sms, int arch, void* stream);
/// Host memory to host memory: rounds [n, k] floats and shuffles them. Sizes: weights n' k / 2,
/// scales and offsets 2 n' k / group bytes with n' = n rounded up to 64.
KT_API int kt_cuda_int4_pack(const float* values, int n, int k, int group, int symmetric, int bf16,
                             void* weights, void* scales, void* offsets);

/// Products of up to max_items int4 matrices with 8 or 16 rows of x each (int4_gemm/grouped.h).
/// items: weights with their f16 scales, symmetric, behind them. num_items, row_scales: on the card.
KT_API int kt_cuda_int4_grouped_sizes(int n, int k, int group, int max_items, int sms, int arch,
                                      size_t* workspace_bytes, int* counters);
KT_API int kt_cuda_int4_grouped(const void* items, const void* num_items, const void* x,
                                const void* row_scales, void* y, void* workspace, void* counters,
                                int max_items, int n, int k, int group, int sms, int arch,
                                void* stream);

/// f16 scales -> out [n, k] f16.
KT_API int kt_cuda_dequantise_int4(const void* weights, const void* scales, const void* offsets,
                                   void* out, int n, int k, int group, void* stream);

KT_API int kt_cuda_prepare(const void* x, int type, int rows, int k, int tiles, void* fragments,
                           void* sums, void* scales, void* stream);
/// items: GemvItem in device memory (kt_cuda_gemv_item_bytes each). layout: 0 R16, 1 blocks, 2 FP8.
KT_API int kt_cuda_gemv_item(void* host_item, const void* weights, const void* block_scales,
                             int first_tile, int tiles);
KT_API int kt_cuda_gemv_item_bytes();
/// Host memory to host memory: rounds [n, k] floats to a GGUF type, in R16 records or its blocks.
/// out null: only the bytes are written.
KT_API int kt_cuda_gemv_weights(const float* values, int n, int k, int gguf_id, int r16, void* out,
                                size_t* bytes);
KT_API int kt_cuda_quant_gemv(const void* items, int num_items, int max_tiles,
                              const void* fragments, const void* sums, const void* scales, void* y,
                              int n, int k, int gguf_id, int layout, int sms, int arch,
                              void* stream);
KT_API int kt_cuda_dequantise(const void* weights, const void* block_scales, void* out, int n,
                              int k, int gguf_id, int layout, int bf16, void* stream);
KT_API int kt_cuda_dense_gemm(const void* x, const void* weights, void* y, int m, int n, int k,
                              int bf16, int float_out, void* stream);

/// v null: latent attention. An FP8 cache where v_exponents or, of latents, k_exponents and
/// k_rope are given (attention/flash.h). Workspace by the first call with workspace null (bytes are
/// written).
KT_API int kt_cuda_flash(const void* q, const void* k, const void* v, void* out,
                         const int32_t* first_token, const int32_t* kv_length, const int32_t* pages,
                         void* workspace, size_t* workspace_bytes, int sequences, int max_tokens,
                         int total_tokens, int heads, int kv_heads, int qk_dim, int v_dim,
                         int max_pages, int max_length, float scale, int bf16, const void* k_rope,
                         const void* k_exponents, const void* v_exponents, int sms, int arch,
                         void* stream);

KT_API int kt_cuda_rms_norm(void* hidden, const void* delta, const void* weight, void* out_float,
                            void* out_16, int m, int k, float eps, int bf16, void* stream);

/// The order of a decode step's operations, a line each: "main NAME LAYER", "side NAME LAYER",
/// "order FROM TO", "post JOB", "await JOB". flags: per layer 1 MoE + 2 shared expert + 4 experts
/// on the CPU + 8 experts with a slot + 16 deferral. text: at least 64 bytes per operation.
KT_API int kt_cuda_record_step(const int* flags, int layers, int sample, char* text, size_t size);

/// A card's memory, for the weights of one loaded model and for what its steps need.
typedef struct kt_cuda_card kt_cuda_card;
/// limit: bytes it may take; 0: what is free.
KT_API int kt_cuda_card_open(int device, int64_t limit, kt_cuda_card** card);
/// Gives all of it back; the models on it are closed before.
KT_API int kt_cuda_card_close(kt_cuda_card* card);
/// Bytes taken so far, the most there may be, and what was taken of pinned host memory for steps,
/// the ring for copies from what is not pinned included.
KT_API int kt_cuda_card_bytes(kt_cuda_card* card, int64_t* taken, int64_t* limit, int64_t* host);
/// Of that ring, where there is one.
KT_API int kt_cuda_staging_bytes();
/// Host bytes to the card.
KT_API int kt_cuda_card_put(kt_cuda_card* card, const void* from, int64_t bytes, void** memory);
/// A matrix in a GGUF type's blocks, [n, k] in row order, to the card, as products want it.
KT_API int kt_cuda_card_put_matrix(kt_cuda_card* card, const void* blocks, int64_t bytes, int n,
                                   int k, int gguf_id, void** memory);
/// The same, rounded to 4 bits for the int4 product. group: 32, 64 or 128 values have a scale, 32
/// an offset too, but of Q4_0; 0: Q4_0, Q4_1 and Q4_K keep their codes, others are rounded in
/// groups of 64. type: for kt_cuda_model_matrix. error, power: sums of squares of what rounding
/// changed and of the values. k a multiple of 64 and of the group.
KT_API int kt_cuda_card_put_int4(kt_cuda_card* card, const void* blocks, int64_t bytes, int n,
                                 int k, int gguf_id, int group, int threads, int* type,
                                 double* error, double* power, void** memory);
/// Floats to the card as f16.
KT_API int kt_cuda_card_put_halves(kt_cuda_card* card, const float* values, int64_t count,
                                   void** memory);

/// A run of layers on a card (api_model.cpp). Its parts are told by name, so that callers share no
/// struct with it. Order: open, number/memory/matrix/expert/source, build, take_room, step...,
/// close.
typedef struct kt_cuda_model kt_cuda_model;
KT_API int kt_cuda_model_open(kt_cuda_card* card, int layers, kt_cuda_model** model);
KT_API int kt_cuda_model_close(kt_cuda_model* model);

/// Tells the model of what it is made. layer: from 0, or -1 for the whole model.
KT_API int kt_cuda_model_number(kt_cuda_model* model, int layer, const char* name, double value);
KT_API int kt_cuda_model_memory(kt_cuda_model* model, int layer, const char* name, void* memory);
/// type: GGUF's, or what kt_cuda_card_put_int4 wrote.
KT_API int kt_cuda_model_matrix(kt_cuda_model* model, int layer, const char* name, void* memory,
                                int n, int k, int type);
/// An expert's matrices, put before; those not named are the CPU's.
KT_API int kt_cuda_model_expert(kt_cuda_model* model, int layer, int expert, void* gate, void* up,
                                void* down);
/// A piece of an expert without a slot in host memory, in R16; part: 0 gate, 1 up, 2 down. Pieces
/// of a part follow one another. With them, and the number stream_slots, long prompts bring experts
/// to the card, and the memory is pinned as far as it can be. It must stay.
KT_API int kt_cuda_model_source(kt_cuda_model* model, int layer, int expert, int part,
                                const void* at, int64_t bytes);
/// Checks it and takes its cache and what no step can do without. Fails, naming it, for a name that
/// nothing asked for.
KT_API int kt_cuda_model_build(kt_cuda_model* model);
/// Takes its share of the room that is left, when all models of the card are built. rows: most of a
/// step: those asked for, or fewer where the card has no room for them. pin_bytes: of its sources,
/// that may be pinned; below 0: all.
KT_API int kt_cuda_model_take_room(kt_cuda_model* model, int64_t pin_bytes, int* rows);

/// Bytes of experts that are streamed, how many of them are pinned, how long that took, and why not
/// all of them (empty where they are). why: size bytes, cut there.
KT_API int kt_cuda_model_pinned(kt_cuda_model* model, int64_t* asked, int64_t* pinned,
                                double* seconds, char* why, size_t size);

KT_API int kt_cuda_model_step(kt_cuda_model* model, const kt_cuda_step* step);
KT_API int kt_cuda_model_copy_page(kt_cuda_model* model, int from, int to);

/// Empty jobs through the mailbox, `layers` of them per graph launch, `steps` launches.
/// microseconds: [steps, layers] from the begin of one job on the CPU to that of the next. way: 0
/// memory operations, 1 host functions; -1: what the probe finds, and it is written.
KT_API int kt_cuda_handoff_bench(int layers, int steps, int* way, double* microseconds);
