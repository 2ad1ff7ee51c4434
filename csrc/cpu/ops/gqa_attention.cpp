#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "cpu/ops/attention.h"
#include "cpu/ops/row_chunks.h"
#include "cpu/ops/tile_attention.h"

namespace kt::cpu {

void Rope::angles(int32_t position, float* cos, float* sin) const {
  // The angle is a float product, as the reference computes it.
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    cos[i] = std::cos(angle) * attention_scaling;
    sin[i] = std::sin(angle) * attention_scaling;
  }
}

void Rope::rotate(const float* cos, const float* sin, float* x) const {
  const int half = static_cast<int>(inv_freq.size());
  if (!interleaved) {
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cos[i] - b * sin[i];
      x[i + half] = b * cos[i] + a * sin[i];
    }
    return;
  }
  float pairs[kMostRope];
  std::copy_n(x, 2 * half, pairs);
  for (int i = 0; i < half; ++i) {
    const float a = pairs[2 * i], b = pairs[2 * i + 1];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

GqaAttention::GqaAttention(GqaWeights weights) : w_(std::move(weights)) {
  const int64_t q = int64_t{w_.num_heads} * w_.head_dim, kv = int64_t{w_.num_kv_heads} * w_.head_dim;
  KT_CHECK(w_.num_heads > 0 && w_.num_kv_heads > 0 && w_.head_dim > 0 &&
               w_.num_heads % w_.num_kv_heads == 0,
           "attention: ", w_.num_heads, " heads of ", w_.head_dim, " over ", w_.num_kv_heads,
           " key heads");
  KT_CHECK(w_.q->rows() == q && w_.k->rows() == kv && w_.v->rows() == kv && w_.o->cols() == q &&
               w_.k->cols() == w_.q->cols() && w_.v->cols() == w_.q->cols() &&
               w_.o->rows() == w_.q->cols(),
           w_.q->weight().name(), ": q ", w_.q->rows(), " x ", w_.q->cols(), ", k ", w_.k->rows(),
           " x ", w_.k->cols(), ", v ", w_.v->rows(), " x ", w_.v->cols(), ", o ", w_.o->rows(),
           " x ", w_.o->cols(), " do not fit ", w_.num_heads, "/", w_.num_kv_heads, " heads of ",
           w_.head_dim);
  KT_CHECK(w_.head_dim <= kMostHead, "attention: heads of ", w_.head_dim, ", at most ", kMostHead);
  KT_CHECK(w_.rope && w_.rope->dim() <= w_.head_dim, "rope over ", w_.rope ? w_.rope->dim() : 0,
           " values, heads have ", w_.head_dim);
  for (const auto& norm : {w_.q_norm, w_.k_norm}) {
    KT_CHECK(!norm || static_cast<int>(norm->weight.size()) == w_.head_dim,
             "attention norm of ", norm ? norm->weight.size() : 0, " values for heads of ",
             w_.head_dim);
  }
  first_ = {&w_.q->weight(), &w_.k->weight(), &w_.v->weight()};
  last_ = {&w_.o->weight()};
}

void GqaAttention::forward(Context& context, const AttentionRows& rows, const float* x,
                           float* out) const {
  Arena::Scope scope(context.arena);
  Arena& arena = context.arena;
  const KernelTable& kernels = context.kernels;
  const int m = rows.m, dim = w_.head_dim;
  // A head's values must start at a block of the cache's type.
  KT_CHECK((rows.k_type != KvType::kQ8_0 && rows.v_type != KvType::kQ8_0) || dim % 32 == 0,
           "a q8_0 cache needs heads that are multiples of 32, these have ", dim,
           "; choose f16 or bf16");
  const int64_t q_width = w_.q->rows(), kv_width = w_.k->rows();
  const Activations input(context, x, hidden_size(), m, hidden_size(), rows.rounding);
  float* q = arena.take<float>(m * q_width);
  float* k = arena.take<float>(m * kv_width);
  float* v = arena.take<float>(m * kv_width);
  const LinearCall project[] = {{w_.q.get(), &input, q, q_width},
                                {w_.k.get(), &input, k, kv_width},
                                {w_.v.get(), &input, v, kv_width}};
  // Behind a long context what was fetched of o before would be gone.
  const bool is_short = m <= kFewTokens && *std::max_element(rows.position, rows.position + m) < 512;
  run_linears(context, project, is_short ? std::span<const Matrix* const>(last_) : std::span<const Matrix* const>());

  std::optional<PhaseScope> phase(std::in_place, context.phases, Phase::kAttention);
  const int half = w_.rope->dim() / 2, share = w_.num_heads / w_.num_kv_heads;
  float* angles = arena.take<float>(int64_t{m} * 2 * half);
  context.pool.run(m, [&](int64_t row, int) {
    float* cos = angles + row * 2 * half;
    w_.rope->angles(rows.position[row], cos, cos + half);
  });
  // Queries of a key head and the key itself, which then goes into the cache.
  context.pool.run(int64_t{m} * w_.num_kv_heads, [&](int64_t index, int) {
    const int64_t row = index / w_.num_kv_heads, head = index % w_.num_kv_heads;
    const float* cos = angles + row * 2 * half;
    const auto prepare = [&](float* x, const RmsNorm* norm) {
      if (norm) kernels.rms_norm(x, norm->weight.data(), norm->eps, dim, x);
      w_.rope->rotate(cos, cos + half, x);
    };
    prepare(k + row * kv_width + head * dim, w_.k_norm.get());
    float* queries = q + row * q_width + head * share * dim;
    for (int h = 0; h < share; ++h) prepare(queries + h * dim, w_.q_norm.get());
    for (int64_t i = 0; i < share * dim; ++i) queries[i] *= w_.scale;
  });
  if (rows.k_type == KvType::kI16) {
    // Two neighbouring positions share the words of a tile: a head's are stored by one worker.
    const int64_t tile = kv_tile_bytes(dim, dim);
    context.pool.run(w_.num_kv_heads, [&](int64_t head, int) {
      for (int64_t row = 0; row < m; ++row) {
        const int32_t position = rows.position[row];
        kernels.put_tile(k + row * kv_width + head * dim, dim, v + row * kv_width + head * dim, dim,
                         position % kKvBlock, rows.kv[row].k[position / kKvBlock] + head * tile);
      }
    });
  } else {
    context.pool.run(m, [&](int64_t row, int) {
      const int32_t position = rows.position[row], page = position / kKvBlock;
      store_position(kernels, kv_spec(), rows.k_type, rows.v_type, k + row * kv_width,
                     v + row * kv_width, position % kKvBlock, rows.kv[row].k[page],
                     rows.kv[row].v[page]);
    });
  }

  float* heads = arena.take<float>(m * q_width);
  auto [floats, num_floats, others, num_others] = split_by_arithmetic(context, rows);
  if (rows.k_type != KvType::kI16) {
    // Making tiles of a cache in rows pays where many queries share them, which prompts' do.
    const auto is_prompt = [&](int row) { return rows.rounding[row] == Rounding::kDigit; };
    int kept = 0;
    for (int i = 0; i < num_others; ++i)
      (is_prompt(others[i]) ? others[kept++] : floats[num_floats++]) = others[i];
    num_others = kept;
  }
  if (num_floats > 0) attend_floats(context, rows, floats, num_floats, q, heads);
  if (num_others > 0) {
    const TileQueries queries{q, q_width, heads, q_width, w_.num_kv_heads, share, dim, dim};
    if (rows.k_type == KvType::kI16)
      tile_attention(context, rows, others, num_others, queries,
                     CachedTiles(rows, kv_tile_bytes(dim, dim)));
    else
      tile_attention(context, rows, others, num_others, queries,
                     RowTiles(kernels, rows, kv_spec(), dim));
  }

  phase.reset();
  if (m <= kFewTokens && !is_short) expect_rows(context, last_);
  const Activations attended(context, heads, q_width, m, q_width, rows.rounding);
  const LinearCall project_out[] = {{w_.o.get(), &attended, out, hidden_size()}};
  run_linears(context, project_out, context.next);
}

// The reference: float products, one piece per row and key head.
void GqaAttention::attend_floats(Context& context, const AttentionRows& rows, const int* chosen,
                                 int count, const float* q, float* heads) const {
  Arena::Scope scope(context.arena);
  const int dim = w_.head_dim, share = w_.num_heads / w_.num_kv_heads;
  const int64_t q_width = w_.q->rows(), kv_width = w_.k->rows();
  int32_t longest = 0;
  for (int i = 0; i < count; ++i) longest = std::max(longest, rows.position[chosen[i]] + 1);
  const int64_t max_pages = (longest + kKvBlock - 1) / kKvBlock;
  const uint8_t** pages =
      context.arena.take<const uint8_t*>(size_t(context.pool.threads()) * 2 * max_pages);
  context.pool.run(int64_t{count} * w_.num_kv_heads, [&](int64_t index, int worker) {
    const int64_t row = chosen[index / w_.num_kv_heads], head = index % w_.num_kv_heads;
    const uint8_t** k_pages = pages + int64_t{worker} * 2 * max_pages;
    const uint8_t** v_pages = k_pages + max_pages;
    const int64_t length = rows.position[row] + 1;
    for (int64_t p = 0; p * kKvBlock < length; ++p) {
      k_pages[p] = rows.kv[row].k[p] + kv_bytes(rows.k_type, head * dim);
      v_pages[p] = rows.kv[row].v[p] + kv_bytes(rows.v_type, head * dim);
    }
    context.kernels.attention({q + row * q_width + head * share * dim, share, dim, dim, dim,
                               k_pages, v_pages, kv_bytes(rows.k_type, kv_width),
                               kv_bytes(rows.v_type, kv_width), rows.k_type, rows.v_type, length,
                               heads + row * q_width + head * share * dim, dim});
  });
}

}  // namespace kt::cpu
