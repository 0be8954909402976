// nvcuda::wmma: a lane holds the elements `lane * n ..` of a fragment in row-major order. Where real lanes hold
// theirs is unspecified, so no text may depend on it.
#pragma once

namespace emulated {

void same_for_all(int line, const void* p, size_t step);
unsigned lane();
struct Product {
    float* d;
    const float *a, *b, *c;
    int m, n, k;
};
void multiply(int line, Product product);

} // namespace emulated

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
} // namespace precision

template <typename T> struct Element {
    using Stored = T;
    static float wide(T x) { return float(x); }
};
template <> struct Element<precision::tf32> {
    using Stored = float;
    // The hardware ignores what a tf32 does not hold.
    static float wide(float x) { return emulated::float_of(emulated::bits_of(x) & 0xffffe000u); }
};
template <typename Use, int M, int N, int K> struct Shape;
template <int M, int N, int K> struct Shape<matrix_a, M, N, K> {
    static constexpr int rows = M, cols = K;
};
template <int M, int N, int K> struct Shape<matrix_b, M, N, K> {
    static constexpr int rows = K, cols = N;
};
template <int M, int N, int K> struct Shape<accumulator, M, N, K> {
    static constexpr int rows = M, cols = N;
};

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    static constexpr int rows = Shape<Use, M, N, K>::rows, cols = Shape<Use, M, N, K>::cols;
    static constexpr int num_elements = rows * cols / 32;
    using element_type = typename Element<T>::Stored;
    element_type x[num_elements];
};

template <typename Use, int M, int N, int K, typename T, typename L, typename V>
inline void fill_fragment(fragment<Use, M, N, K, T, L>& f, V value) {
    for (auto& x : f.x) x = typename Element<T>::Stored(value);
}

template <typename F, typename E> inline void load(int line, F& f, const E* p, unsigned step, bool by_rows) {
    emulated::same_for_all(line, p, size_t(step) * sizeof(E));
    for (int e = 0; e < F::num_elements; ++e) {
        int i = emulated::lane() * F::num_elements + e, r = i / F::cols, c = i % F::cols;
        const E* at = p + (by_rows ? size_t(r) * step + c : size_t(c) * step + r);
        emulated::reads(at, sizeof(E), line);
        memcpy(&f.x[e], at, sizeof(E));
    }
}
template <typename Use, int M, int N, int K, typename T, typename E>
inline void load_at(int line, fragment<Use, M, N, K, T, row_major>& f, const E* p, unsigned step) {
    load(line, f, p, step, true);
}
template <typename Use, int M, int N, int K, typename T, typename E>
inline void load_at(int line, fragment<Use, M, N, K, T, col_major>& f, const E* p, unsigned step) {
    load(line, f, p, step, false);
}
template <typename Use, int M, int N, int K, typename T, typename E>
inline void load_at(int line, fragment<Use, M, N, K, T>& f, const E* p, unsigned step, layout_t layout) {
    load(line, f, p, step, layout == mem_row_major);
}
template <typename Use, int M, int N, int K, typename T, typename E>
inline void store_at(int line, E* p, const fragment<Use, M, N, K, T>& f, unsigned step, layout_t layout) {
    using F = fragment<Use, M, N, K, T>;
    emulated::same_for_all(line, p, size_t(step) * sizeof(E));
    for (int e = 0; e < F::num_elements; ++e) {
        int i = emulated::lane() * F::num_elements + e, r = i / F::cols, c = i % F::cols;
        E* at = p + (layout == mem_row_major ? size_t(r) * step + c : size_t(c) * step + r);
        emulated::writes(at, sizeof(E), line);
        memcpy(at, &f.x[e], sizeof(E));
    }
}

template <int M, int N, int K, typename T, typename LA, typename LB, typename C>
inline void mma_at(int line, fragment<accumulator, M, N, K, C>& d, const fragment<matrix_a, M, N, K, T, LA>& a,
                   const fragment<matrix_b, M, N, K, T, LB>& b, const fragment<accumulator, M, N, K, C>& c) {
    float da[M * N / 32], aa[M * K / 32], ba[K * N / 32], ca[M * N / 32];
    for (int e = 0; e < M * K / 32; ++e) aa[e] = Element<T>::wide(a.x[e]);
    for (int e = 0; e < K * N / 32; ++e) ba[e] = Element<T>::wide(b.x[e]);
    for (int e = 0; e < M * N / 32; ++e) ca[e] = float(c.x[e]);
    emulated::multiply(line, {da, aa, ba, ca, M, N, K});
    for (int e = 0; e < M * N / 32; ++e) d.x[e] = C(da[e]);
}
inline float __float_to_tf32(float x) {
    uint32_t b = emulated::bits_of(x);
    return emulated::float_of((b + 0x1000) & 0xffffe000u);
}

} // namespace wmma
} // namespace nvcuda

#define load_matrix_sync(...) load_at(__LINE__, __VA_ARGS__)
#define store_matrix_sync(...) store_at(__LINE__, __VA_ARGS__)
#define mma_sync(...) mma_at(__LINE__, __VA_ARGS__)
