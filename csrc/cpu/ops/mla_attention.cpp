#include <algorithm>
#include <optional>

#include "base/error.h"
#include "cpu/isa.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/row_chunks.h"
#include "cpu/ops/tile_attention.h"

namespace kt::cpu {

MlaAttention::MlaAttention(MlaWeights weights) : w_(std::move(weights)) {
  const int64_t heads = w_.num_heads, nope = w_.qk_nope_head_dim, rope = w_.qk_rope_head_dim;
  const int64_t v = w_.v_head_dim, latent = w_.kv_lora_rank, hidden = w_.kv_a->cols();
  KT_CHECK(heads > 0 && nope > 0 && rope > 0 && v > 0 && latent > 0, "MLA: heads=", heads,
           ", qk_nope_head_dim=", nope, ", qk_rope_head_dim=", rope, ", v_head_dim=", v,
           ", kv_lora_rank=", latent, " must be positive");
  const Linear& q_out = w_.q ? *w_.q : *w_.q_b;
  KT_CHECK(q_out.rows() == heads * (nope + rope), q_out.weight().name(), ": ", q_out.rows(),
           " rows, ", heads, " heads of ", nope + rope, " need ", heads * (nope + rope));
  if (w_.q) {
    KT_CHECK(w_.q->cols() == hidden, w_.q->weight().name(), ": ", w_.q->cols(), " columns for ",
             hidden);
  } else {
    KT_CHECK(w_.q_a && w_.q_a_norm && w_.q_a->cols() == hidden && w_.q_a->rows() == w_.q_b->cols() &&
                 static_cast<int64_t>(w_.q_a_norm->weight.size()) == w_.q_a->rows(),
             w_.q_b->weight().name(), ": q_a and its norm do not fit q_b");
  }
  KT_CHECK(w_.kv_a->rows() == latent + rope, w_.kv_a->weight().name(), ": ", w_.kv_a->rows(),
           " rows, latent and rope need ", latent + rope);
  KT_CHECK(w_.kv_a_norm && static_cast<int64_t>(w_.kv_a_norm->weight.size()) == latent,
           "kv_a_layernorm must have ", latent, " values");
  KT_CHECK(w_.o->rows() == hidden && w_.o->cols() == heads * v, w_.o->weight().name(), ": ",
           w_.o->rows(), " x ", w_.o->cols(), " for ", hidden, " x ", heads * v);
  KT_CHECK(latent + rope <= kMostHead && nope + rope <= kMostHead && v <= kMostHead &&
               rope <= kMostRope,
           "MLA: heads of ", latent + rope, ", at most ", kMostHead);
  KT_CHECK(w_.rope && w_.rope->dim() == rope, "rope over ", w_.rope ? w_.rope->dim() : 0,
           " values, qk_rope_head_dim is ", rope);
  if (w_.kv_b) {
    KT_CHECK(w_.kv_b->rows() == heads * (nope + v) && w_.kv_b->cols() == latent,
             w_.kv_b->weight().name(), ": ", w_.kv_b->rows(), " x ", w_.kv_b->cols(), " for ",
             heads * (nope + v), " x ", latent);
    KT_CHECK(nope % 16 == 0 && v % 16 == 0, "MLA: qk_nope_head_dim=", nope, " and v_head_dim=", v,
             " must be multiples of 16");
  } else {
    KT_CHECK(static_cast<int64_t>(w_.k_b.size()) == heads &&
                 static_cast<int64_t>(w_.v_b.size()) == heads,
             "MLA: k_b of ", w_.k_b.size(), " and v_b of ", w_.v_b.size(), " heads for ", heads);
    for (int64_t h = 0; h < heads; ++h) {
      KT_CHECK(w_.k_b[h]->rows() == latent && w_.k_b[h]->cols() == nope &&
                   w_.v_b[h]->rows() == v && w_.v_b[h]->cols() == latent,
               w_.k_b[h]->name(), ": k_b and v_b do not fit latent ", latent, ", nope ", nope,
               ", v ", v);
    }
  }
  first_ = {&(w_.q ? w_.q : w_.q_a)->weight(), &w_.kv_a->weight()};
  if (!w_.q) widen_ = {&w_.q_b->weight()};
  if (w_.kv_b) kv_b_ = {&w_.kv_b->weight()};
  last_ = {&w_.o->weight()};
}

void MlaAttention::forward(Context& context, const AttentionRows& rows, const float* x,
                           float* out) const {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  const KernelTable& kernels = context.kernels;
  const int m = rows.m;
  const int64_t nope = w_.qk_nope_head_dim, rope = w_.qk_rope_head_dim, latent = w_.kv_lora_rank;
  const int64_t q_width = w_.num_heads * (nope + rope), kv_width = latent + rope;
  const Activations input(context, x, hidden_size(), m, hidden_size(), rows.rounding);
  float* q = arena.take<float>(m * q_width);
  float* kv = arena.take<float>(m * kv_width);
  if (w_.q) {
    const LinearCall project[] = {{w_.q.get(), &input, q, q_width},
                                  {w_.kv_a.get(), &input, kv, kv_width}};
    run_linears(context, project, kv_b_);
  } else {
    const int64_t rank = w_.q_a->rows();
    float* low = arena.take<float>(m * rank);
    const LinearCall project[] = {{w_.q_a.get(), &input, low, rank},
                                  {w_.kv_a.get(), &input, kv, kv_width}};
    run_linears(context, project, widen_);
    context.pool.run(m, [&](int64_t row, int) {
      float* p = low + row * rank;
      kernels.rms_norm(p, w_.q_a_norm->weight.data(), w_.q_a_norm->eps, rank, p);
    });
    const Activations inner(context, low, rank, m, rank, rows.rounding);
    const LinearCall widen[] = {{w_.q_b.get(), &inner, q, q_width}};
    run_linears(context, widen, kv_b_);
  }

  std::optional<PhaseScope> phase(std::in_place, context.phases, Phase::kAttention);
  float* angles = arena.take<float>(size_t(context.pool.threads()) * rope);
  context.pool.run(m, [&](int64_t row, int worker) {
    float* cos = angles + worker * rope;
    float* sin = cos + rope / 2;
    const int32_t position = rows.position[row];
    w_.rope->angles(position, cos, sin);
    float* queries = q + row * q_width;
    for (int h = 0; h < w_.num_heads; ++h)
      w_.rope->rotate(cos, sin, queries + h * (nope + rope) + nope);
    for (int64_t i = 0; i < q_width; ++i) queries[i] *= w_.scale;
    float* entry = kv + row * kv_width;
    kernels.rms_norm(entry, w_.kv_a_norm->weight.data(), w_.kv_a_norm->eps, latent, entry);
    w_.rope->rotate(cos, sin, entry + latent);
    kernels.store_kv(entry, kv_width, rows.k_type,
                     rows.kv[row].k[position / kKvBlock] +
                         position % kKvBlock * kv_bytes(rows.k_type, kv_width));
  });

  // Rows of long prompts are worth expanding their sequence's keys for; others absorb.
  const int64_t o_width = w_.o->cols();
  float* heads = arena.take<float>(m * o_width);
  const auto [floats, num_floats, others, num_others] = split_by_arithmetic(context, rows);
  RowRun* runs = arena.take<RowRun>(m);
  const auto is_expanded = [&](int row) {
    return w_.expand == Expand::kAlways || (w_.expand == Expand::kLongPrompts && rows.kind &&
                                            rows.kind[row] == RowKind::kLongPrompt);
  };
  for (const bool in_floats : {true, false}) {
    int* chosen = in_floats ? floats : others;
    const int num_runs =
        sort_by_sequence(rows, chosen, in_floats ? num_floats : num_others, runs);
    int num_single = 0;
    for (int i = 0; i < num_runs; ++i) {
      int* mine = chosen + runs[i].begin;
      int* const end = mine + runs[i].count;
      if ((!in_floats || w_.kv_b) && std::any_of(mine, end, is_expanded)) {
        int* const others_begin = std::stable_partition(mine, end, is_expanded);
        const int count = static_cast<int>(others_begin - mine);
        if (in_floats)
          expanded(context, rows, mine, count, q, heads);
        else
          expanded_tiles(context, rows, mine, count, q, heads);
        mine = others_begin;
      }
      num_single = static_cast<int>(std::copy(mine, end, chosen + num_single) - chosen);
    }
    // In slices: the absorbed queries of all heads are large.
    constexpr int kSlice = 64;
    for (int at = 0; at < num_single; at += kSlice)
      absorbed(context, rows, chosen + at, std::min(kSlice, num_single - at), in_floats, q, heads);
  }

  phase.reset();
  const Activations attended(context, heads, o_width, m, o_width, rows.rounding);
  const LinearCall project_out[] = {{w_.o.get(), &attended, out, hidden_size()}};
  run_linears(context, project_out, context.next);
}

// scores = (W_k^T q_nope) . latent + q_rope . k_rope;  out = W_v (sum p latent), per head.
void MlaAttention::absorbed(Context& context, const AttentionRows& rows, const int* chosen,
                            int count, bool in_floats, const float* q, float* heads_out) const {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  const KernelTable& kernels = context.kernels;
  const int64_t heads = w_.num_heads, nope = w_.qk_nope_head_dim, rope = w_.qk_rope_head_dim;
  const int64_t v = w_.v_head_dim, latent = w_.kv_lora_rank, width = latent + rope;
  float* queries = arena.take<float>(count * heads * width);
  float* mixed = arena.take<float>(count * heads * latent);

  // Neither the queries' parts nor the latent mix are rows of the model's input: near-exact rounding
  // whatever the row's, so that absorbing or expanding does not change what a row reads.
  const int total = count * static_cast<int>(heads);
  Rounding* rounding = arena.take<Rounding>(total);
  for (int i = 0; i < total; ++i)
    rounding[i] = rows.rounding[chosen[i / heads]] == Rounding::kFloat ? Rounding::kFloat
                                                                       : Rounding::kExact;
  const int threads = context.pool.threads();
  int* ids = arena.take<int>(size_t(threads) * count);
  float** outputs = arena.take<float*>(size_t(threads) * count);
  void** scratch = arena.take<void*>(size_t(threads) * 2 * count);
  // y[i], `stride` floats apart from `first` on, = all rows of the matrix, of x's rows i * heads + h.
  const auto multiply = [&](const Matrix& weight, Range groups, const Activations& x, int64_t h,
                            int worker, auto&& y_of) {
    int* tokens = ids + int64_t{worker} * count;
    float** y = outputs + int64_t{worker} * count;
    for (int i = 0; i < count; ++i) {
      tokens[i] = static_cast<int>(i * heads + h);
      y[i] = y_of(i);
    }
    matmul_rows(kernels, weight, x, tokens, count, groups, y, scratch + int64_t{worker} * 2 * count);
  };

  const auto query = [&](int64_t i, int64_t h) {
    return q + (chosen[i] * heads + h) * (nope + rope);
  };
  const auto absorbed_query = [&](int64_t i, int64_t h) { return queries + (i * heads + h) * width; };
  const auto take_rotated = [&](int64_t i, int64_t h) {
    std::copy_n(query(i, h) + nope, rope, absorbed_query(i, h) + latent);
  };
  if (w_.kv_b) {
    const Matrix& weight = w_.kv_b->weight();
    const FormatKernels& format = format_kernels(kernels, weight.gguf_id());
    context.pool.run(heads, [&](int64_t h, int) {
      const int64_t first = h * (nope + v);
      for (int64_t i = 0; i < count; ++i) {
        float* to = absorbed_query(i, h);
        take_rotated(i, h);
        std::fill_n(to, latent, 0.0f);
        for (const RowSlice& slice : weight.slices()) {
          const int64_t begin = std::max(first, slice.row_begin);
          const int64_t end = std::min(first + nope, slice.row_begin + slice.rows);
          if (begin >= end) continue;
          const TransposedTask task = {slice.data, latent, slice.rows, begin - slice.row_begin,
                                       end - slice.row_begin, query(i, h) + (begin - first), to};
          if (rounding[i * heads] == Rounding::kExact && format.transposed_halves)
            format.transposed_halves(task, format);
          else
            format.transposed(task);
        }
      }
    });
  } else {
    float* parts = arena.take<float>(int64_t{total} * nope);
    context.pool.run(heads, [&](int64_t h, int) {
      for (int64_t i = 0; i < count; ++i) {
        take_rotated(i, h);
        std::copy_n(query(i, h), nope, parts + (i * heads + h) * nope);
      }
    });
    const Activations x(context, parts, nope, total, nope, rounding);
    context.pool.run(heads, [&](int64_t h, int worker) {
      multiply(*w_.k_b[h], {0, (latent + 15) / 16}, x, h, worker,
               [&](int i) { return absorbed_query(i, h); });
    });
  }

  if (in_floats) {
    const int64_t bundle = 8;  // heads that share one read of the latents
    const int64_t bundles = (heads + bundle - 1) / bundle;
    context.pool.run(count * bundles, [&](int64_t index, int) {
      const int64_t i = index / bundles, first = index % bundles * bundle;
      const int row = chosen[i];
      const int64_t stride = kv_bytes(rows.k_type, width);
      kernels.attention({queries + (i * heads + first) * width,
                         static_cast<int>(std::min(bundle, heads - first)), width,
                         static_cast<int>(width), static_cast<int>(latent), rows.kv[row].k,
                         rows.kv[row].k, stride, stride, rows.k_type, rows.k_type,
                         rows.position[row] + 1, mixed + (i * heads + first) * latent, latent});
    });
  } else {
    // The chosen rows by themselves, as their queries lie.
    int32_t* position = arena.take<int32_t>(count);
    int32_t* sequence = arena.take<int32_t>(count);
    KvPages* pages = arena.take<KvPages>(count);
    int* all = arena.take<int>(count);
    for (int i = 0; i < count; ++i) {
      position[i] = rows.position[chosen[i]];
      sequence[i] = rows.sequence[chosen[i]];
      pages[i] = rows.kv[chosen[i]];
      all[i] = i;
    }
    const AttentionRows own{count, position, nullptr, pages, sequence, rows.k_type, rows.v_type};
    tile_attention(context, own, all, count,
                   {queries, heads * width, mixed, heads * latent, 1, static_cast<int>(heads),
                    static_cast<int>(width), static_cast<int>(latent)},
                   RowTiles(kernels, own, kv_spec(), static_cast<int>(latent)));
  }

  const Activations mix(context, mixed, latent, total, latent, rounding);
  if (count <= kFewTokens) expect_rows(context, last_);
  context.pool.run(heads, [&](int64_t h, int worker) {
    const int64_t first = w_.kv_b ? (h * (nope + v) + nope) / 16 : 0;
    multiply(w_.kv_b ? w_.kv_b->weight() : *w_.v_b[h], {first, first + (v + 15) / 16}, mix, h,
             worker, [&](int i) { return heads_out + (chosen[i] * heads + h) * v; });
  });
}

// Keys and values of all cached positions are computed once for a bundle of heads and shared by the
// rows of the prompt. The reference; expanded_tiles() does it in int16.
void MlaAttention::expanded(Context& context, const AttentionRows& rows, const int* chosen,
                            int count, const float* q, float* heads_out) const {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  const KernelTable& kernels = context.kernels;
  const int64_t heads = w_.num_heads, nope = w_.qk_nope_head_dim, rope = w_.qk_rope_head_dim;
  const int64_t v = w_.v_head_dim, latent = w_.kv_lora_rank, width = latent + rope;
  const int64_t key = nope + rope, both = nope + v;
  int32_t length = 0;
  for (int i = 0; i < count; ++i) length = std::max(length, rows.position[chosen[i]] + 1);
  const KvPages& kv = rows.kv[chosen[0]];

  // The latents as floats, [length, latent + rope], read back from the cache: what a later decode
  // step will see.
  float* latents = arena.take<float>(length * width);
  Rounding* exact = arena.take<Rounding>(length);
  std::fill_n(exact, length, rows.rounding[chosen[0]] == Rounding::kFloat ? Rounding::kFloat
                                                                           : Rounding::kExact);
  const int64_t stride = kv_bytes(rows.k_type, width);
  context.pool.run(length, [&](int64_t p, int) {
    kernels.load_kv(kv.k[p / kKvBlock] + p % kKvBlock * stride, width, rows.k_type,
                    latents + p * width);
  });
  const Activations input(context, latents, width, length, latent, exact);

  // As many heads at a time as keep the expanded floats within 64 MiB.
  const int64_t per_head = length * (key + v) * static_cast<int64_t>(sizeof(float));
  const int64_t bundle = std::clamp<int64_t>((64 << 20) / per_head, 1, heads);
  const int64_t num_pages = (length + kKvBlock - 1) / kKvBlock;
  float* keys = arena.take<float>(bundle * length * key);
  float* values = arena.take<float>(bundle * length * v);
  float* raw = arena.take<float>(bundle * length * both);
  const int threads = context.pool.threads();
  float** outputs = arena.take<float*>(size_t(threads) * length);
  void** scratch = arena.take<void*>(size_t(threads) * 2 * length);
  const uint8_t** pages = arena.take<const uint8_t*>(bundle * 2 * num_pages);
  for (int64_t first = 0; first < heads; first += bundle) {
    const int64_t now = std::min(bundle, heads - first);
    const int64_t groups = both / 16;
    context.pool.run(now * groups, [&](int64_t index, int worker) {
      const int64_t h = index / groups, group = index % groups;
      float** y = outputs + int64_t{worker} * length;
      for (int64_t p = 0; p < length; ++p) y[p] = raw + (h * length + p) * both + group * 16;
      const int64_t at = (first + h) * groups + group;
      matmul_rows(kernels, w_.kv_b->weight(), input, nullptr, length, {at, at + 1}, y,
                  scratch + int64_t{worker} * 2 * length);
    });
    context.pool.run(now * num_pages, [&](int64_t index, int) {
      const int64_t h = index / num_pages, page = index % num_pages;
      const int64_t end = std::min<int64_t>(length, (page + 1) * kKvBlock);
      for (int64_t p = page * kKvBlock; p < end; ++p) {
        const float* from = raw + (h * length + p) * both;
        float* to = keys + (h * length + p) * key;
        std::copy(from, from + nope, to);
        std::copy(latents + p * width + latent, latents + (p + 1) * width, to + nope);
        std::copy(from + nope, from + both, values + (h * length + p) * v);
      }
      pages[h * 2 * num_pages + page] =
          reinterpret_cast<const uint8_t*>(keys + (h * length + page * kKvBlock) * key);
      pages[(h * 2 + 1) * num_pages + page] =
          reinterpret_cast<const uint8_t*>(values + (h * length + page * kKvBlock) * v);
    });
    context.pool.run(now * count, [&](int64_t index, int) {
      const int64_t h = index / count;
      const int row = chosen[index % count];
      kernels.attention({q + (row * heads + first + h) * key, 1, key, static_cast<int>(key),
                         static_cast<int>(v), pages + h * 2 * num_pages,
                         pages + (h * 2 + 1) * num_pages, key * 4, v * 4, KvType::kF32,
                         KvType::kF32, rows.position[row] + 1,
                         heads_out + (row * heads + first + h) * v, v});
    });
  }
}

}  // namespace kt::cpu
