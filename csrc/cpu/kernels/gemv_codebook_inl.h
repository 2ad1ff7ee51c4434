// gemv_record of IQ2 and IQ3, two indices in a lane; x points to reordered activations
// (codebook_inl.h).
#pragma once

#include "cpu/kernels/points_inl.h"

namespace kt::cpu::KT_ISA {
namespace {

#if defined(KT_HAS_GEMV)

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  iq2_xxs_record<T>(record, x, total, [&](int g, I (&points)[2]) __attribute__((always_inline)) {
    const I w = take_line<T>(quant::r16_word<quant::IQ2_XXS>(record, 2 * g));
    points[0] = look_up(kIq2xxsBook, first_indices(w));
    points[1] = look_up(kIq2xxsBook, second_indices(w));
  });
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_XS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_XS;
  iq2_record<Q, T>(record, 16, x, total, [&](int g, I (&points)[2]) __attribute__((always_inline)) {
    const I v = take_line<T>(quant::r16_word<Q>(record, 2 * g));
    const I w = take_line<T>(quant::r16_word<Q>(record, 2 * g + 1));
    points[0] = look_up(kIq2xsBook, band(v, set_i(0x01FF01FF)));
    points[1] = look_up(kIq2xsBook, band(w, set_i(0x01FF01FF)));
    // Signs stand above the indices, by two in a lane; one after another by bytes, then.
    const I both = odd_bytes(v, w);  // of points 0, 2, 1, 3
    return even_signs(band(shr(pick<0, 2, 1, 3>(both), 1), bytes_of(0x7F)));
  });
}

template <int T>
KT_INLINE void gemv_record(quant::IQ2_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  using Q = quant::IQ2_S;
  iq2_record<Q, T>(record, 18, x, total, [&](int g, I (&points)[2]) __attribute__((always_inline)) {
    const I w = take_line<T>(quant::r16_word<Q>(record, g));
    const I signs = take_line<T>(quant::r16_word<Q>(record, 8 + g));
    const I bits = shr(word<Q>(record, 16 + g / 4), g % 4 * 8);
    points[0] = look_up(kIq2sBook, with_upper_bits(first_indices(w), bits, 3, 8, 22));
    points[1] = look_up(kIq2sBook, with_upper_bits(second_indices(w), bits, 3, 4, 18));
    return signs;
  });
}

// Points of four values, two in a lane -> one a byte.
KT_INLINE Iq3Points iq3_points(I a, I b) { return {even_bytes(a, b), odd_bytes(a, b)}; }

template <int T>
KT_INLINE void gemv_record(quant::IQ3_XXS, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  iq3_xxs_record<T>(record, x, total, [](I w) __attribute__((always_inline)) {
    const I byte = set_i(0x00FF00FF);
    return iq3_points(look_up(kIq3xxsBook, band(w, byte)),
                      look_up(kIq3xxsBook, band(shr(w, 8), byte)));
  });
}

template <int T>
KT_INLINE void gemv_record(quant::IQ3_S, const uint8_t* record, const ActBlock* const* x,
                           F* total) {
  iq3_s_record<T>(record, x, total, [](I w, I bits, int half) __attribute__((always_inline)) {
    const I byte = set_i(0x00FF00FF);
    bits = shr(bits, 4 * half);
    const I a = look_up(kIq3sBook, with_upper_bits(band(w, byte), bits, 1, 8, 22));
    const I b = look_up(kIq3sBook, with_upper_bits(band(shr(w, 8), byte), bits, 1, 7, 21));
    return iq3_points(a, b);
  });
}

#endif

}  // namespace
}  // namespace kt::cpu::KT_ISA
