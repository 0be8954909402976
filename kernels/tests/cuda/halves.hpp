// 16-bit floats: their bits, rounded to nearest even from f32 after each operation.
#pragma once

namespace emulated {

inline uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return b;
}
inline float float_of(uint32_t b) {
    float x;
    memcpy(&x, &b, 4);
    return x;
}
struct AsHalf {
    static float wide(uint16_t h) {
        uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
        if (e == 31) return float_of(sign | 0x7f800000 | m << 13);
        if (e) return float_of(sign | (e + 112) << 23 | m << 13);
        float small = float(m) * 0x1p-24f;
        return sign ? -small : small;
    }
    static uint16_t narrow(float x) {
        uint32_t b = bits_of(x), sign = b >> 16 & 0x8000;
        b &= 0x7fffffff;
        if (b > 0x7f800000) return 0x7fff;
        if (b >= 0x477ff000) return sign | 0x7c00;
        // Below the normals the sum with a magic number rounds at the right place.
        if (b < 0x38800000) return sign | uint16_t(bits_of(float_of(b) + 0.5f) - 0x3f000000);
        return sign | uint16_t((b + 0xfff + (b >> 13 & 1) - 0x38000000) >> 13);
    }
};
struct AsBrain {
    static float wide(uint16_t h) { return float_of(uint32_t(h) << 16); }
    static uint16_t narrow(float x) {
        uint32_t b = bits_of(x);
        if ((b & 0x7fffffff) > 0x7f800000) return 0x7fff;
        return uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
};

template <typename As> struct Narrow {
    uint16_t bits;
    Narrow() = default;
    template <typename T> Narrow(T x) : bits(As::narrow(float(x))) {}
    operator float() const { return As::wide(bits); }
    Narrow& operator+=(Narrow o) { return *this = Narrow(float(*this) + float(o)); }
    Narrow& operator*=(Narrow o) { return *this = Narrow(float(*this) * float(o)); }
};
#define EMULATED_BINARY(op)                                                                                            \
    template <typename As> inline Narrow<As> operator op(Narrow<As> a, Narrow<As> b) {                                \
        return Narrow<As>(float(a) op float(b));                                                                      \
    }
EMULATED_BINARY(+)
EMULATED_BINARY(-)
EMULATED_BINARY(*)
EMULATED_BINARY(/)
#define EMULATED_COMPARE(op)                                                                                           \
    template <typename As> inline bool operator op(Narrow<As> a, Narrow<As> b) { return float(a) op float(b); }
EMULATED_COMPARE(<)
EMULATED_COMPARE(<=)
EMULATED_COMPARE(>)
EMULATED_COMPARE(>=)
EMULATED_COMPARE(==)
EMULATED_COMPARE(!=)
template <typename As> inline Narrow<As> operator-(Narrow<As> a) { return Narrow<As>(-float(a)); }

// Two of them in a register.
template <typename As> struct alignas(4) Pair {
    Narrow<As> x, y;
};
#define EMULATED_PAIRED(op)                                                                                            \
    template <typename As> inline Pair<As> operator op(Pair<As> a, Pair<As> b) { return {a.x op b.x, a.y op b.y}; }
EMULATED_PAIRED(+)
EMULATED_PAIRED(-)
EMULATED_PAIRED(*)
EMULATED_PAIRED(/)

} // namespace emulated

using __half = emulated::Narrow<emulated::AsHalf>;
using half = __half;
using __half2 = emulated::Pair<emulated::AsHalf>;
using __nv_bfloat16 = emulated::Narrow<emulated::AsBrain>;
using __nv_bfloat162 = emulated::Pair<emulated::AsBrain>;

#define EMULATED_UNARY(one, two, expression)                                                                           \
    template <typename As> inline emulated::Narrow<As> one(emulated::Narrow<As> h) {                                  \
        float x = h;                                                                                                  \
        return emulated::Narrow<As>(expression);                                                                      \
    }                                                                                                                 \
    template <typename As> inline emulated::Pair<As> two(emulated::Pair<As> h) { return {one(h.x), one(h.y)}; }
EMULATED_UNARY(hexp, h2exp, expf(x))
EMULATED_UNARY(hlog, h2log, logf(x))
EMULATED_UNARY(hsin, h2sin, sinf(x))
EMULATED_UNARY(hcos, h2cos, cosf(x))
EMULATED_UNARY(htanh, h2tanh, tanhf(x))
EMULATED_UNARY(hsqrt, h2sqrt, sqrtf(x))
EMULATED_UNARY(hrsqrt, h2rsqrt, 1.0f / sqrtf(x))
EMULATED_UNARY(hceil, h2ceil, ceilf(x))
EMULATED_UNARY(hfloor, h2floor, floorf(x))
EMULATED_UNARY(htrunc, h2trunc, truncf(x))
EMULATED_UNARY(hrint, h2rint, rintf(x))
EMULATED_UNARY(__habs, __habs2, fabsf(x))
template <typename As>
inline emulated::Narrow<As> __hfma(emulated::Narrow<As> a, emulated::Narrow<As> b, emulated::Narrow<As> c) {
    return emulated::Narrow<As>(fmaf(a, b, c));
}
template <typename As>
inline emulated::Pair<As> __hfma2(emulated::Pair<As> a, emulated::Pair<As> b, emulated::Pair<As> c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
#define EMULATED_EXTREME(one, two, f)                                                                                  \
    template <typename As>                                                                                            \
    inline emulated::Narrow<As> one(emulated::Narrow<As> a, emulated::Narrow<As> b) {                                 \
        return emulated::Narrow<As>(f(float(a), float(b)));                                                           \
    }                                                                                                                 \
    template <typename As> inline emulated::Pair<As> two(emulated::Pair<As> a, emulated::Pair<As> b) {                \
        return {one(a.x, b.x), one(a.y, b.y)};                                                                        \
    }
EMULATED_EXTREME(__hmax, __hmax2, fmaxf)
EMULATED_EXTREME(__hmin, __hmin2, fminf)
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return __half(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
