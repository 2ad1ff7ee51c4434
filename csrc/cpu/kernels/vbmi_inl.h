// Bytes looked up in registers (AVX-512 VBMI): one instruction takes 64 of them from a table of 128
// that two registers hold, and one more such table or a field of a word costs as much again.
//
// A table is loaded for every 64 indices, and loads are what there is least of: two groups' indices
// are looked up side by side.
#pragma once

#include "cpu/kernels/halves_inl.h"
#include "cpu/kernels/iq_scales_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

// The table's bytes at bits 0 to 6 of every index. As assembly, because GCC chooses the form that
// overwrites the table.
KT_INLINE __m512i find_in_two(__m512i table, __m512i more_table, __m512i index) {
  asm("vpermi2b %2, %1, %0" : "+v"(index) : "v"(table), "v"(more_table));
  return index;
}
KT_INLINE I find_in_128(const uint8_t* table, I index) {
  return {find_in_two(_mm512_load_si512(table), _mm512_load_si512(table + 64), index.v)};
}
// The table's bytes at bits 0 to 5 of every index.
KT_INLINE I find_in_64(const uint8_t* table, I index) {
  return {_mm512_permutexvar_epi8(index.v, _mm512_load_si512(table))};
}

// Bits 0 to 6 of 64 indices, and those above as masks.
struct Indices {
  __m512i low;
  __mmask64 bit[4];  // bit 7, 8, 9 and 10
};
KT_INLINE __mmask64 any_set(I w, uint32_t bits) {
  return _mm512_test_epi8_mask(w.v, _mm512_set1_epi32((int32_t)bits));
}

// out[i] = table[index[i]] for K times 64 indices. `all` is the size of the whole table.
template <int n, int K, int all = n>
KT_INLINE void find_bytes(const uint8_t* table, const Indices (&index)[K], __m512i (&out)[K]) {
  if constexpr (n == 256) {
    __m512i a = _mm512_load_si512(table), b = _mm512_load_si512(table + 64);
    __m512i c = _mm512_load_si512(table + 128), d = _mm512_load_si512(table + 192);
    // GCC loads what it takes for constants once for every use, and of the largest table that is
    // felt.
    if constexpr (all == 2048) asm("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d));
    // What a mask leaves out is still the index.
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) {
      out[k] = index[k].low;
      const __mmask64 upper = index[k].bit[0];
      asm("vpermi2b %2, %1, %0%{%3%}" : "+v"(out[k]) : "v"(a), "v"(b), "Yk"(~upper));
      asm("vpermi2b %2, %1, %0%{%3%}" : "+v"(out[k]) : "v"(c), "v"(d), "Yk"(upper));
    }
  } else {
    constexpr int bit = n == 512 ? 1 : n == 1024 ? 2 : 3;
    __m512i above[K];
    find_bytes<n / 2, K, all>(table, index, out);
    find_bytes<n / 2, K, all>(table + n / 2, index, above);
#pragma GCC unroll 2
    for (int k = 0; k < K; ++k) out[k] = _mm512_mask_mov_epi8(out[k], index[k].bit[bit], above[k]);
  }
}

// Eight bits of a word for each of its bytes: from bit b0 on for byte 0, b1 for byte 1, and so on.
// Bits that the word does not have are its neighbour's.
struct BitFields {
  alignas(64) uint8_t control[64];
  constexpr BitFields(int b0, int b1, int b2, int b3) : control() {
    const int first[4] = {b0, b1, b2, b3};
    for (int i = 0; i < 64; ++i) control[i] = (uint8_t)((first[i % 4] + i / 4 % 2 * 32) & 63);
  }
};
template <int b0, int b1, int b2, int b3>
KT_INLINE I bit_fields(I w) {
  static constexpr BitFields kFields(b0, b1, b2, b3);
  return {_mm512_multishift_epi64_epi8(_mm512_load_si512(kFields.control), w.v)};
}

// The low halves of a's lanes below those of b, and the high ones.
KT_INLINE I low_halves(I a, I b) {
  return {_mm512_mask_mov_epi16(a.v, 0xAAAAAAAA, _mm512_slli_epi32(b.v, 16))};
}
KT_INLINE I high_halves(I a, I b) {
  return {_mm512_mask_mov_epi16(_mm512_srli_epi32(a.v, 16), 0xAAAAAAAA, b.v)};
}

// The float of a 4-bit number, whatever the bits above it: one of sixteen.
KT_INLINE F pick_float(I index, const float* table) {
  return {_mm512_permutexvar_ps(index.v, _mm512_load_ps(table))};
}

// Of two vectors' lanes the bytes b0 to b3: 0 to 3 are a's, 4 to 7 b's.
struct TwoLanes {
  alignas(64) uint8_t control[64];
  constexpr TwoLanes(int b0, int b1, int b2, int b3) : control() {
    const int bytes[4] = {b0, b1, b2, b3};
    for (int i = 0; i < 64; ++i)
      control[i] = (uint8_t)(i / 4 * 4 + bytes[i % 4] % 4 + bytes[i % 4] / 4 * 64);
  }
};
template <int b0, int b1, int b2, int b3>
KT_INLINE I pick_of_two(I a, I b) {
  static constexpr TwoLanes kBytes(b0, b1, b2, b3);
  return {_mm512_permutex2var_epi8(a.v, _mm512_load_si512(kBytes.control), b.v)};
}

// Seven stored signs, whatever the bit above them -> eight.
struct EvenSigns {
  alignas(64) uint8_t eight[128];
  constexpr EvenSigns() : eight() {
    for (int i = 0; i < 128; ++i) eight[i] = (uint8_t)quant::even_signs(i);
  }
};
constexpr EvenSigns kEvenSigns;

// What pick_float takes for each 4-bit s.
struct Sixteen {
  alignas(64) float at[16];
  template <class Of>
  constexpr explicit Sixteen(Of value) : at() {
    for (int s = 0; s < 16; ++s) at[s] = value(s);
  }
};
constexpr Sixteen kHalfSteps([](int s) { return (float)s + 0.5f; });
constexpr Sixteen kOddNumbers([](int s) { return (float)(2 * s + 1); });

// Two of a record's eight groups at a time: find(g) is what use(g, found) needs of groups g and g
// + 1. The next ones' is found before these are used, so that neither waits for the other.
template <class Find, class Use>
KT_INLINE void pairs_of_groups(Find find, Use use) {
  auto found = find(0);
#pragma GCC unroll 1
  for (int g = 0; g < 6; g += 2) {
    const auto next = find(g + 2);
    use(g, found);
    found = next;
  }
  use(6, found);
}

// Accumulators of a group of 32 values. One token's products are few enough to wait for one
// another: two chains then, in turn.
template <int T>
constexpr int kChains = T == 1 ? 2 : 1;
template <int T>
struct GroupAcc {
  Acc chain[kChains<T>][T];
};
template <int T>
KT_INLINE Acc* chain_of(GroupAcc<T>& acc, int i) {
  return acc.chain[i % kChains<T>];
}
template <int T>
KT_INLINE void start(GroupAcc<T>& acc, int t, int32_t from) {
  acc.chain[0][t] = acc_from(from);
  if constexpr (kChains<T> == 2) acc.chain[1][t] = acc_from(0);
}
template <int T>
KT_INLINE I acc_sum(const GroupAcc<T>& acc, int t) {
  const Acc &a = acc.chain[0][t], &b = acc.chain[kChains<T> - 1][t];
  if constexpr (kChains<T> == 1) return acc_sum(a);
  return acc_sum({_mm512_add_epi32(a.hi, b.hi), _mm512_add_epi32(a.lo, b.lo)});
}

// Which of a block's 32 activations stands at each place of its halves.
struct Order {
  alignas(64) uint8_t from[64];
  template <class From>
  constexpr explicit Order(From place) : from() {
    for (int i = 0; i < 64; ++i) from[i] = (uint8_t)(place(i % 32) + i / 32 * 32);
  }
};
// The same value of four points, of eight values or of four.
constexpr Order kFourByEight([](int i) { return i % 4 * 8 + i / 4; });
constexpr Order kFourByFour([](int i) { return i / 16 * 16 + i % 4 * 4 + i / 4 % 4; });

KT_INLINE void order_block(const ActBlock& from, const Order& order, ActBlock& to) {
  to = from;
  const __m512i control = _mm512_load_si512(order.from);
  store_i(to.hi, {_mm512_permutexvar_epi8(control, load_i(from.hi).v)});
}

}  // namespace
}  // namespace kt::cpu::KT_ISA
