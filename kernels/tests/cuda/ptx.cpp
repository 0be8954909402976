// Reads inline PTX and runs what is simple itself. An instruction that is not known here is an error, never skipped.

#include "ptx.hpp"

#include <ctype.h>
#include <stdlib.h>

namespace emulated {

namespace {

struct Reader {
    const char* p;
    int line;
    void space() {
        while (isspace(static_cast<unsigned char>(*p))) ++p;
    }
    bool eat(char c) {
        space();
        if (*p != c) return false;
        ++p;
        return true;
    }
    std::string word() {
        space();
        std::string w;
        while (isalnum(static_cast<unsigned char>(*p)) || *p == '_' || *p == '.' || *p == '$' || *p == ':' ||
               (*p == '%' && (w.empty() || w == "%")))
            w += *p++;
        return w;
    }
    Arg arg() {
        Arg a;
        space();
        if (eat('{') || eat('[')) {
            const bool group = p[-1] == '{';
            const char close = group ? '}' : ']';
            a.kind = group ? Arg::Group : Arg::Address;
            while (!eat(close)) {
                if (!*p) fail(line, "a group of operands without an end");
                a.parts.push_back(arg());
                if (!eat(',')) eat('+');
            }
            return a;
        }
        const bool minus = eat('-');
        std::string w = word();
        if (w.empty()) fail(line, "an operand is missing before: %s", p);
        if (w == "_") return a;
        if (w[0] == '%' && w.size() > 1 && isdigit(static_cast<unsigned char>(w[1]))) {
            a.kind = Arg::Slot;
            a.slot = unsigned(atoi(w.c_str() + 1));
        } else if (isdigit(static_cast<unsigned char>(w[0]))) {
            a.kind = Arg::Number;
            const bool real = w.size() == 10 && w[0] == '0' && (w[1] == 'f' || w[1] == 'F');
            a.number = real ? strtoull(w.c_str() + 2, nullptr, 16) : strtoull(w.c_str(), nullptr, 0);
            if (minus) a.number = -a.number;
        } else {
            a.kind = Arg::Name;
            a.name = w;
        }
        return a;
    }
};

std::vector<Instruction> read(const char* text, int line) {
    std::vector<Instruction> all;
    Reader r{text, line};
    for (;;) {
        r.space();
        if (!*r.p) return all;
        // Braces only bound the life of names.
        if (r.eat('{') || r.eat('}') || r.eat(';')) continue;
        Instruction i;
        if (r.eat('@')) {
            i.negated = r.eat('!');
            i.predicate = r.word();
        }
        i.opcode = r.word();
        if (i.opcode.empty()) fail(line, "no instruction at: %s", r.p);
        if (i.opcode == ".reg") {
            r.word();
            do {
                Arg a;
                a.kind = Arg::Name;
                a.name = r.word();
                a.number = 0;
                if (r.eat('<')) {
                    a.number = strtoull(r.word().c_str(), nullptr, 10);
                    r.eat('>');
                }
                i.args.push_back(a);
            } while (r.eat(','));
        } else {
            r.space();
            while (*r.p && *r.p != ';') {
                i.args.push_back(r.arg());
                if (!r.eat(',')) r.eat('|');
                r.space();
            }
        }
        if (!r.eat(';')) fail(line, "%s has no end", i.opcode.c_str());
        all.push_back(i);
    }
}

void declare(Site& s) {
    for (const Arg& a : s.args()) {
        if (!a.number) s.thread->registers[a.name] = 0xffffffffffffffffull;
        for (uint64_t k = 0; k < a.number; ++k) s.thread->registers[a.name + std::to_string(k)] = 0xffffffffffffffffull;
    }
}

void move(Site& s) {
    const Arg &to = s.args()[0], &from = s.args()[1];
    if (from.kind == Arg::Group && from.parts.size() == 2) {
        const unsigned half = s.instruction->has("b32") ? 16 : 32;
        s.put(to, (s.get(from.parts[0]) & ((1ull << half) - 1)) | s.get(from.parts[1]) << half);
    } else if (to.kind == Arg::Group && to.parts.size() == 2) {
        const unsigned half = s.instruction->has("b32") ? 16 : 32;
        s.put(to.parts[0], s.get(from) & ((1ull << half) - 1));
        s.put(to.parts[1], s.get(from) >> half);
    } else {
        s.put(to, s.get(from));
    }
}

void extreme(Site& s) {
    const float a = s.get_float(s.args()[1]), b = s.get_float(s.args()[2]);
    const bool least = s.instruction->opcode[1] == 'i';
    if (!s.instruction->has("f32")) fail(s.line, "no such instruction: %s", s.instruction->opcode.c_str());
    if (s.instruction->has("NaN") && (a != a || b != b)) return s.put(s.args()[0], 0x7fffffff);
    s.put_float(s.args()[0], least ? fminf(a, b) : fmaxf(a, b));
}

void times(Site& s) {
    if (!s.instruction->has("f32")) fail(s.line, "no such instruction: %s", s.instruction->opcode.c_str());
    s.put_float(s.args()[0], s.get_float(s.args()[1]) * s.get_float(s.args()[2]));
}
void power(Site& s) { s.put_float(s.args()[0], exp2f(s.get_float(s.args()[1]))); }
void hyperbolic(Site& s) { s.put_float(s.args()[0], tanhf(s.get_float(s.args()[1]))); }
void reciprocal(Site& s) { s.put_float(s.args()[0], 1.0f / s.get_float(s.args()[1])); }
void select(Site& s) {
    const auto& a = s.args();
    s.put(a[0], s.get(a[s.get(a[3]) & 1 ? 1 : 2]));
}
void compare(Site& s) {
    const auto& a = s.args();
    const int64_t x = int32_t(s.get(a[1])), y = int32_t(s.get(a[2]));
    const bool yes = s.instruction->has("ne") ? x != y : s.instruction->has("eq") ? x == y : s.instruction->has("lt") && x < y;
    if (!s.instruction->has("ne") && !s.instruction->has("eq") && !s.instruction->has("lt"))
        fail(s.line, "no such comparison: %s", s.instruction->opcode.c_str());
    s.put(a[0], yes);
}
// Two floats to a word of halves, the first in the upper bits.
void narrow_pair(Site& s) {
    const auto& a = s.args();
    const float high = s.get_float(a[1]), low = s.get_float(a[2]);
    const bool brain = s.instruction->has("bf16x2");
    const uint32_t top = brain ? AsBrain::narrow(high) : AsHalf::narrow(high);
    const uint32_t rest = brain ? AsBrain::narrow(low) : AsHalf::narrow(low);
    s.put(a[0], top << 16 | rest);
}
// To 10 bits of fraction, to the nearest, ties away from 0.
void tf32(Site& s) {
    const float x = s.get_float(s.args()[1]);
    uint32_t bits;
    memcpy(&bits, &x, 4);
    s.put(s.args()[0], x != x ? 0x7fffffffu : (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u);
}
void to_shared(Site& s) { s.put(s.args()[0], shared_address(reinterpret_cast<const void*>(s.get(s.args()[1])))); }
// atom: 32 bits at a generic address, or at one of the block's memory.
void atomic(Site& s) {
    const auto& a = s.args();
    const Instruction& i = *s.instruction;
    if (!i.has("u32") && !i.has("s32") && !i.has("b32")) fail(s.line, "no such instruction: %s", i.opcode.c_str());
    const bool block = i.has("shared") || i.has("shared::cta");
    const uint64_t at = s.get(a[1]);
    auto* p = reinterpret_cast<uint32_t*>(block ? s.shared_at(at, 4) : reinterpret_cast<char*>(at));
    if (reinterpret_cast<uintptr_t>(p) % 4) fail(s.line, "%s at %p, which is not a multiple of 4", i.opcode.c_str(), static_cast<void*>(p));
    changes(p, 4, s.line);
    const uint32_t old = *p, by = uint32_t(s.get(a[2]));
    const bool less = i.has("s32") ? int32_t(old) < int32_t(by) : old < by;
    if (i.has("add"))
        *p = old + by;
    else if (i.has("exch"))
        *p = by;
    else if (i.has("min"))
        *p = less ? old : by;
    else if (i.has("max"))
        *p = less ? by : old;
    else if (i.has("and"))
        *p = old & by;
    else if (i.has("or"))
        *p = old | by;
    else if (i.has("xor"))
        *p = old ^ by;
    else
        fail(s.line, "no such instruction: %s", i.opcode.c_str());
    s.put(a[0], old);
}
// The least or the greatest number of a warp.
void reduce(Site* const* lanes, int line) {
    const Instruction& i = *lanes[0]->instruction;
    if (!i.has("s32") || (!i.has("min") && !i.has("max"))) fail(line, "no such instruction: %s", i.opcode.c_str());
    int32_t all = int32_t(lanes[0]->get(i.args[1]));
    for (int l = 0; l < 32; ++l) {
        const int32_t x = int32_t(lanes[l]->get(i.args[1]));
        if (uint32_t(lanes[l]->get(i.args[2])) != ~0u) fail(line, "lane %d names less than the whole warp", l);
        all = i.has("min") ? min(all, x) : max(all, x);
    }
    for (int l = 0; l < 32; ++l) lanes[l]->put(i.args[0], uint32_t(all));
}
void reduce_warp(Site& s) { together(s, reduce); }
void meet_warp(Site& s) { sync_warp(s.line, ~0u); }
// A barrier of the block by its number: threads may come to it at different lines.
void meet_block(Site& s) {
    if (s.args().size() != 1 || s.args()[0].kind != Arg::Number || s.get(s.args()[0]) == 0)
        fail(s.line, "bar.sync of a part of the block, or of barrier 0, which is __syncthreads'");
    sync_block(s.line, unsigned(s.get(s.args()[0])));
}
// What is brought near must be there, and nobody may write it meanwhile.
void bring(Site& s) { reads(reinterpret_cast<const void*>(s.get(s.args()[0])), 1, s.line); }
void nothing(Site&) {}

// By the start of the opcode; the first that fits.
const struct {
    const char* opcode;
    void (*run)(Site&);
} TABLE[] = {
    {".reg", declare},
    {"mov.", move},
    {"max.", extreme},
    {"min.", extreme},
    {"mul.", times},
    {"ex2.approx", power},
    {"tanh.approx", hyperbolic},
    {"rcp.", reciprocal},
    {"selp.", select},
    {"setp.", compare},
    {"cvt.rn.bf16x2.f32", narrow_pair},
    {"cvt.rn.f16x2.f32", narrow_pair},
    {"cvt.rna.tf32.f32", tf32},
    {"cvta.to.shared", to_shared},
    // Global addresses are the host's.
    {"cvta.to.global", move},
    {"atom.", atomic},
    {"bar.warp.sync", meet_warp},
    {"bar.sync", meet_block},
    {"redux.sync", reduce_warp},
    {"cp.async.commit_group", commit_copies},
    {"cp.async.wait_group", wait_copies},
    {"cp.async.wait_all", wait_copies},
    {"cp.async.ca.shared", copy_async},
    {"cp.async.cg.shared", copy_async},
    {"mma.sync.aligned", mma},
    {"ldmatrix.sync.aligned", load_matrices},
    {"wgmma.mma_async", wgmma},
    {"wgmma.commit_group", commit_products},
    {"wgmma.wait_group", wait_products},
    // Orders of memory that one thread of the host keeps by itself.
    {"wgmma.fence", nothing},
    {"fence.", nothing},
    {"membar.", nothing},
    {"prefetch.global.L2", bring},
    {"setmaxnreg", nothing},
};

} // namespace

uint64_t Site::get(const Arg& a) const {
    switch (a.kind) {
    case Arg::Number: return a.number;
    case Arg::Slot: {
        uint64_t x = 0;
        memcpy(&x, operands[a.slot].at, operands[a.slot].bytes);
        return x;
    }
    case Arg::Name: {
        const auto at = thread->registers.find(a.name);
        if (at == thread->registers.end()) fail(line, "register %s is not declared", a.name.c_str());
        return at->second;
    }
    case Arg::Address: {
        uint64_t x = 0;
        for (const Arg& part : a.parts) x += get(part);
        return x;
    }
    default: fail(line, "%s reads an operand that is no number", instruction->opcode.c_str());
    }
}

void Site::put(const Arg& a, uint64_t value) const {
    if (a.kind == Arg::Slot) {
        memcpy(operands[a.slot].at, &value, operands[a.slot].bytes);
    } else if (a.kind == Arg::Name) {
        const auto at = thread->registers.find(a.name);
        if (at == thread->registers.end()) fail(line, "register %s is not declared", a.name.c_str());
        at->second = value;
    } else if (a.kind != Arg::Nothing) {
        fail(line, "%s writes what is no register", instruction->opcode.c_str());
    }
}

char* Site::shared_at(uint64_t address, size_t bytes) const {
    if (address < SHARED_WINDOW || address + bytes > SHARED_WINDOW + SHARED_BYTES)
        fail(line, "%s: %#lx is no address of shared memory", instruction->opcode.c_str(), static_cast<unsigned long>(address));
    return shared_start() + (address - SHARED_WINDOW);
}

struct Lane {
    Site* site;
    Together run;
};

void together(Site& s, Together run) {
    Lane mine{&s, run};
    auto complete = [](void** lanes, unsigned there, int line) {
        if (there != ~0u) fail(line, "an instruction of the whole warp by lanes %08x alone", there);
        Site* sites[32];
        for (int i = 0; i < 32; ++i) sites[i] = static_cast<Lane*>(lanes[i])->site;
        static_cast<Lane*>(lanes[0])->run(sites, line);
    };
    meet(s.line, complete, &mine);
}

void ptx(int line, const char* text, const Operand* operands, unsigned, unsigned) {
    static std::map<std::pair<int, std::string>, std::vector<Instruction>> known;
    auto& all = known[{line, text}];
    if (all.empty()) all = read(text, line);
    Thread* t = machine.now;
    for (const Instruction& i : all) {
        Site s{t, operands, &i, line};
        if (!i.predicate.empty()) {
            Arg p;
            p.kind = Arg::Name;
            p.name = i.predicate;
            if ((s.get(p) & 1) == i.negated) continue;
        }
        bool found = false;
        for (const auto& row : TABLE) {
            if (i.opcode.compare(0, strlen(row.opcode), row.opcode)) continue;
            row.run(s);
            found = true;
            break;
        }
        if (!found) fail(line, "no such instruction: %s", i.opcode.c_str());
    }
}

} // namespace emulated
