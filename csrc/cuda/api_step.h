// A step of a model on a card, as plain C types: what the core hands to kt_cuda_model_step.
#pragma once

#include <stdint.h>

/// Rows whose logits are computed in one step of a card, at most.
enum { KT_CUDA_MOST_HEAD_ROWS = 64 };

/// The CPU's part of one layer. Memory both sides reach.
typedef struct {
  int rows;
  int first_row;         // of the rows, in the step that kt_cuda_model_step was given
  const float* x;        // [rows, hidden], normalised
  const int32_t* ids;    // [rows, top_k] experts, -1: on the card; null: the whole feed-forward
  const float* weights;  // [rows, top_k]
  float* out;            // [rows, hidden]
} kt_cuda_job;

/// How one row's next token is chosen (as csrc/program/sampling.h defines it, without penalties).
typedef struct {
  uint64_t random;    // what the row's generator gave; nothing where greedy
  float temperature;  // above 0
  float top_p;        // in (0, 1]; 1: off
  float min_p;        // in [0, 1]; 0: off
  int32_t top_k;      // 0: off
  int32_t greedy;     // not 0: the largest logit, the lowest token of equals
  int32_t pad;
} kt_cuda_sampling;

typedef struct {
  int rows, sequences;
  const float* hidden;          // [rows, hidden]
  const int32_t* position;      // [rows]
  const int32_t* sequence;      // [rows], ascending: a sequence's rows follow one another
  const uint8_t* is_prompt;     // [rows] 0: a generated token; null: all are
  const int32_t* const* pages;  // [sequences] numbers of the cache's pages
  const int32_t* num_pages;     // [sequences]
  int num_head_rows;            // rows whose logits are wanted; 0 where the card has no head
  const int32_t* head_rows;     // [num_head_rows]
  float* logits;                // [num_head_rows, vocab]; unused where sampling is given
  const kt_cuda_sampling* sampling;  // [num_head_rows]: tokens are wanted, or null
  int32_t* tokens;                   // [num_head_rows], -1 where every logit is NaN
  float* hidden_out;            // [rows, hidden] behind the last layer, or null
  /// Runs job number `job` (layers whose feed-forward part is the CPU's or partly so, from 0);
  /// called from another thread, returns 0, or 1 where it failed.
  int (*job)(void* context, int job, const kt_cuda_job* data);
  void* context;
} kt_cuda_step;
