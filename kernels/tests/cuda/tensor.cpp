// Tensor cores: products of fragments. Sums are made in f64 and rounded once; real ones keep fewer bits on the way.

#include "emulator.hpp"

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

} // namespace emulated
