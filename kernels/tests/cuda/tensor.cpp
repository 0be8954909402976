// Tensor cores a warp at a time: fragments of wmma, mma.sync, ldmatrix. Sums are made in f64 and rounded once a product
// of tiles; real ones keep fewer bits on the way.

#include "ptx.hpp"

namespace emulated {

void multiply(int line, Product mine) {
    auto complete = [](void** lanes, unsigned there, int at) {
        if (there != ~0u) fail(at, "fragments multiplied by lanes %08x alone", there);
        const auto of = [&](int i) -> const Product& { return *static_cast<Product*>(lanes[i]); };
        const int m = of(0).m, n = of(0).n, k = of(0).k, am = m * k / 32, bm = k * n / 32, cm = m * n / 32;
        for (int r = 0; r < m; ++r)
            for (int c = 0; c < n; ++c) {
                int place = r * n + c;
                double sum = of(place / cm).c[place % cm];
                for (int i = 0; i < k; ++i)
                    sum += double(of((r * k + i) / am).a[(r * k + i) % am]) * of((i * n + c) / bm).b[(i * n + c) % bm];
                of(place / cm).d[place % cm] = float(sum);
            }
    };
    meet(line, complete, &mine);
}

namespace {

// Half `h` of a register.
float narrow(const Site& s, const Arg& a, int h) {
    const uint16_t bits = uint16_t(s.get(a) >> (16 * h));
    return s.instruction->has("bf16") ? AsBrain::wide(bits) : AsHalf::wide(bits);
}

// m16n8: element (row, column) of the sums is register c of lane 4 row + column / 2.
void product(Site* const* lanes, int line) {
    const Instruction& i = *lanes[0]->instruction;
    const bool tf32 = i.has("tf32");
    const int k = i.has("m16n8k16") ? 16 : i.has("m16n8k8") ? 8 : 0;
    if (!k || (tf32 && k == 16) || !(tf32 || i.has("bf16") || i.has("f16")) || !i.has("row") || !i.has("col"))
        fail(line, "no such product: %s", i.opcode.c_str());
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; ++l) {
        const Site& s = *lanes[l];
        const int g = l / 4, t = l % 4;
        const auto &ra = s.args()[1].parts, &rb = s.args()[2].parts;
        const size_t want_a = tf32 ? 4 : size_t(k) / 4, want_b = tf32 ? 2 : size_t(k) / 8;
        if (ra.size() != want_a || rb.size() != want_b || s.args()[0].parts.size() != 4 || s.args()[3].parts.size() != 4)
            fail(line, "%s with %zu and %zu registers", i.opcode.c_str(), ra.size(), rb.size());
        for (size_t j = 0; j < ra.size(); ++j)
            for (int h = 0; h < (tf32 ? 1 : 2); ++h)
                a[g + 8 * (j % 2)][tf32 ? t + 4 * (j / 2) : size_t(2 * t + h) + 8 * (j / 2)] =
                    tf32 ? float_of(uint32_t(s.get(ra[j])) & 0xffffe000u) : narrow(s, ra[j], h);
        for (size_t j = 0; j < rb.size(); ++j)
            for (int h = 0; h < (tf32 ? 1 : 2); ++h)
                b[tf32 ? t + 4 * j : size_t(2 * t + h) + 8 * j][g] =
                    tf32 ? float_of(uint32_t(s.get(rb[j])) & 0xffffe000u) : narrow(s, rb[j], h);
    }
    for (int l = 0; l < 32; ++l)
        for (int j = 0; j < 4; ++j) {
            const int r = l / 4 + 8 * (j / 2), c = l % 4 * 2 + j % 2;
            double sum = lanes[l]->get_float(lanes[l]->args()[3].parts[size_t(j)]);
            for (int x = 0; x < k; ++x) sum += double(a[r][x]) * b[x][c];
            lanes[l]->put_float(lanes[l]->args()[0].parts[size_t(j)], float(sum));
        }
}

// Matrix j of 8 x 8: lane 8 j + r names its row r; lane 4 r + c / 2 gets elements c and c + 1 of row r.
void matrices(Site* const* lanes, int line) {
    const Instruction& i = *lanes[0]->instruction;
    const size_t count = i.has("x4") ? 4 : i.has("x2") ? 2 : 1;
    uint16_t m[4][8][8];
    for (size_t j = 0; j < count; ++j)
        for (int r = 0; r < 8; ++r) {
            const Site& s = *lanes[j * 8 + size_t(r)];
            const uint64_t at = s.get(s.args()[1]);
            if (at % 16) fail(line, "a row of a matrix at %#lx: not a multiple of 16", static_cast<unsigned long>(at));
            const char* p = s.shared_at(at, 16);
            machine.now = s.thread;
            reads(p, 16, line);
            memcpy(m[j][r], p, 16);
        }
    for (int l = 0; l < 32; ++l) {
        const Arg& to = lanes[l]->args()[0];
        const size_t given = to.kind == Arg::Group ? to.parts.size() : 1;
        if (given != count) fail(line, "%s into %zu registers", i.opcode.c_str(), given);
        for (size_t j = 0; j < count; ++j) {
            const int r = l / 4, c = l % 4 * 2;
            const uint16_t low = i.has("trans") ? m[j][c][r] : m[j][r][c];
            const uint16_t high = i.has("trans") ? m[j][c + 1][r] : m[j][r][c + 1];
            lanes[l]->put(to.kind == Arg::Group ? to.parts[j] : to, low | uint32_t(high) << 16);
        }
    }
}

} // namespace

void mma(Site& s) { together(s, product); }
void load_matrices(Site& s) { together(s, matrices); }

} // namespace emulated
