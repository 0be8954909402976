// wgmma: products of 64 x n x 16 by the four warps of a warpgroup, out of shared memory that descriptors name. Each
// warp makes its own 16 rows. In one turn a product is made when it is waited for, in the other at once.

#include "ptx.hpp"

#include <stdlib.h>

namespace emulated {

namespace {

// A factor in shared memory. Lines are rows of A or columns of B.
struct Factor {
    uint64_t start, leading, stride;
    unsigned swizzle;
    bool along_k;

    // Bytes from the start to element (line, k); 16 bytes hold 8 elements. The canonical layouts of the PTX manual's
    // matrix descriptors: swizzled atoms are 8 lines (or 8 k) of 32, 64 or 128 bytes.
    uint64_t place(unsigned line, unsigned k) const {
        const uint64_t row = swizzle == 0 ? 16 : swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
        if (along_k) {
            const uint64_t chunk = k / 8 * (swizzle ? 16 : leading);
            return line % 8 * row + line / 8 * stride + chunk + k % 8 * 2;
        }
        if (!swizzle) return line % 8 * 2 + line / 8 * stride + k % 8 * 16 + k / 8 * leading;
        const unsigned wide = unsigned(row) / 2;
        return line % wide * 2 + line / wide * leading + k % 8 * row + k / 8 * stride;
    }
    // The swizzle exchanges 16-byte parts by the address itself.
    uint64_t address(unsigned line, unsigned k) const {
        const uint64_t at = start + place(line, k);
        const uint64_t mask = swizzle == 1 ? 7 : swizzle == 2 ? 3 : swizzle == 3 ? 1 : 0;
        return at ^ ((at >> 7 & mask) << 4);
    }
};

Factor factor(uint64_t d, bool along_k, int line) {
    Factor f{(d & 0x3fff) << 4, (d >> 16 & 0x3fff) << 4, (d >> 32 & 0x3fff) << 4, unsigned(d >> 62), along_k};
    if (d >> 49 & 7) fail(line, "a descriptor with a base offset: not emulated");
    return f;
}

struct Job {
    std::vector<Thread*> threads;
    const Instruction* instruction;
    int line;
    unsigned n;
    bool brain, from_registers, keep;
    float signs[2];
    Factor a, b;
    // A, if it comes from registers of the statement: as it was at the instruction.
    float rows[16][16];
    // A, if it comes from named registers: they are read when the product is made, as the machine may.
    bool named_rows;
    // What each lane's operands were.
    std::vector<std::vector<Operand>> slots;
};
std::map<unsigned, std::vector<std::vector<Job>>> under_way;

float element(const Job& j, const Factor& f, unsigned line, unsigned k, Thread* t) {
    const uint64_t at = f.address(line, k);
    if (at < SHARED_WINDOW || at + 2 > SHARED_WINDOW + SHARED_BYTES)
        fail(j.line, "a descriptor reaches %#lx, outside of shared memory", static_cast<unsigned long>(at));
    const char* p = shared_start() + (at - SHARED_WINDOW);
    machine.now = t;
    reads(p, 2, j.line);
    uint16_t bits;
    memcpy(&bits, p, 2);
    return j.brain ? AsBrain::wide(bits) : AsHalf::wide(bits);
}

// The words of one lane of A.
void lay(Job& j, const Site& lane, unsigned l) {
    for (unsigned r = 0; r < 4; ++r)
        for (unsigned h = 0; h < 2; ++h) {
            const uint16_t bits = uint16_t(lane.get(j.instruction->args[1].parts[r]) >> (16 * h));
            j.rows[l / 4 + 8 * (r % 2)][l % 4 * 2 + h + 8 * (r / 2)] = j.brain ? AsBrain::wide(bits) : AsHalf::wide(bits);
        }
}

void make(Job& j) {
    for (unsigned l = 0; j.named_rows && l < 32; ++l) lay(j, Site{j.threads[l], nullptr, j.instruction, j.line}, l);
    const unsigned base = j.threads[0]->warp() % 4 * 16;
    std::vector<float> b(16 * j.n);
    float a[16][16];
    for (unsigned k = 0; k < 16; ++k) {
        for (unsigned c = 0; c < j.n; ++c) b[k * j.n + c] = element(j, j.b, c, k, j.threads[c % 32]);
        for (unsigned r = 0; r < 16; ++r)
            a[r][k] = j.from_registers ? j.rows[r][k] : element(j, j.a, base + r, k, j.threads[r]);
    }
    for (unsigned l = 0; l < 32; ++l)
        for (unsigned i = 0; i < j.n / 2; ++i) {
            const unsigned r = l / 4 + 8 * (i / 2 % 2), c = i / 4 * 8 + l % 4 * 2 + i % 2;
            Thread& t = *j.threads[l];
            const Arg& to = j.instruction->args[0].parts[i];
            Site s{&t, j.slots[l].data(), j.instruction, j.line};
            double sum = j.keep ? s.get_float(to) : 0.0;
            for (unsigned k = 0; k < 16; ++k)
                sum += double(j.signs[0]) * a[r][k] * j.signs[1] * b[k * j.n + c];
            s.put_float(to, float(sum));
        }
}

std::vector<std::vector<Job>>& groups(unsigned warp) {
    auto& g = under_way[warp];
    if (g.empty()) g.emplace_back();
    return g;
}

void begin(Site* const* lanes, int line) {
    const Site& s = *lanes[0];
    const auto& args = s.args();
    Job j{};
    j.instruction = s.instruction;
    j.line = line;
    const size_t at = s.instruction->opcode.find(".m64n");
    if (at == std::string::npos || !s.instruction->has("f32")) fail(line, "no such product: %s", s.instruction->opcode.c_str());
    j.n = unsigned(strtoul(s.instruction->opcode.c_str() + at + 5, nullptr, 10));
    j.brain = s.instruction->has("bf16");
    if (!j.brain && !s.instruction->has("f16")) fail(line, "no such product: %s", s.instruction->opcode.c_str());
    if (s.instruction->opcode.find("k16.") == std::string::npos || j.n % 8 || j.n > 256 || args[0].parts.size() != j.n / 2)
        fail(line, "%s with %zu sums", s.instruction->opcode.c_str(), args[0].parts.size());
    j.from_registers = args[1].kind == Arg::Group;
    if (j.from_registers && args[1].parts.size() != 4) fail(line, "%zu registers of A", args[1].parts.size());
    j.named_rows = j.from_registers;
    for (const Arg& a : args[1].parts) j.named_rows = j.named_rows && a.kind == Arg::Name;
    if (args.size() != (j.from_registers ? 7u : 8u)) fail(line, "%s with %zu operands", s.instruction->opcode.c_str(), args.size());
    j.keep = s.get(args[3]) & 1;
    j.signs[0] = float(int32_t(s.get(args[4])));
    j.signs[1] = float(int32_t(s.get(args[5])));
    for (int l = 0; l < 32; ++l) {
        const Site& one = *lanes[l];
        j.threads.push_back(one.thread);
        if (one.get(args[2]) != s.get(args[2]) || (!j.from_registers && one.get(args[1]) != s.get(args[1])))
            fail(line, "lanes 0 and %d name different descriptors", l);
        std::vector<Operand> slots;
        unsigned most = 0;
        for (const Arg& a : args[0].parts)
            if (a.kind == Arg::Slot && a.slot + 1 > most) most = a.slot + 1;
        slots.assign(one.operands, one.operands + most);
        j.slots.push_back(slots);
        if (j.from_registers && !j.named_rows) lay(j, one, unsigned(l));
    }
    if (!j.from_registers) j.a = factor(s.get(args[1]), !(s.get(args[6]) & 1), line);
    j.b = factor(s.get(args[2]), !(s.get(args[j.from_registers ? 6 : 7]) & 1), line);
    // Sums that are operands of the statement live no longer than it does.
    const bool named = j.slots[0].empty();
    if (machine.backwards || !named)
        make(j);
    else
        groups(s.thread->warp()).back().push_back(j);
}

void close(Site* const* lanes, int) { groups(lanes[0]->thread->warp()).emplace_back(); }

void finish(Site* const* lanes, int) {
    auto& g = groups(lanes[0]->thread->warp());
    const size_t keep = lanes[0]->get(lanes[0]->args()[0]) + 1;
    while (g.size() > keep) {
        for (Job& j : g.front()) make(j);
        g.erase(g.begin());
    }
}

} // namespace

void wgmma(Site& s) { together(s, begin); }
void commit_products(Site& s) { together(s, close); }
void wait_products(Site& s) { together(s, finish); }
void forget_products(const Thread* t) { under_way.erase(t->warp()); }

} // namespace emulated
