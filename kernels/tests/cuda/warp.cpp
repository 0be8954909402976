// What the lanes of a warp do together: barriers, votes, shuffles. All lanes that the instruction names must be there.

#include "emulator.hpp"

namespace emulated {

// Lanes of the current warp that have not ended.
static unsigned alive() {
    unsigned first = machine.now->warp() * 32, mask = 0;
    for (unsigned i = first; i < first + 32 && i < machine.units; ++i)
        if (machine.threads[i].state != State::Done) mask |= 1u << (i - first);
    return mask;
}

static void all_of(unsigned wanted, unsigned mask, int line, const char* what) {
    wanted &= alive();
    if (wanted != mask) fail(line, "%s of lanes %08x, but lanes %08x are there", what, wanted, mask);
}

void sync_warp(int line, unsigned mask) {
    auto complete = [](void** lanes, unsigned there, int at) {
        unsigned wanted = *static_cast<unsigned*>(lanes[__builtin_ctz(there)]);
        all_of(wanted, there, at, "a barrier");
        ++machine.warp_epochs[machine.now->warp()];
    };
    meet(line, complete, &mask);
}

unsigned active(int line) {
    unsigned mask = 0;
    auto complete = [](void** lanes, unsigned there, int) {
        for (int i = 0; i < 32; ++i)
            if (lanes[i]) *static_cast<unsigned*>(lanes[i]) = there;
    };
    meet(line, complete, &mask);
    return mask;
}

struct Shuffle {
    unsigned mask, size, by;
    int how;
    char* value;
};

void shuffle(int line, unsigned mask, void* value, unsigned size, int how, unsigned by) {
    Shuffle mine{mask, size, by, how, static_cast<char*>(value)};
    auto complete = [](void** lanes, unsigned there, int at) {
        char before[32][16];
        for (unsigned i = 0; i < 32; ++i) {
            if (!lanes[i]) continue;
            const Shuffle& s = *static_cast<Shuffle*>(lanes[i]);
            if (s.size > 16) fail(at, "a shuffle of %u bytes", s.size);
            memcpy(before[i], s.value, s.size);
            all_of(s.mask, there, at, "a shuffle");
        }
        for (unsigned i = 0; i < 32; ++i) {
            if (!lanes[i]) continue;
            const Shuffle& s = *static_cast<Shuffle*>(lanes[i]);
            unsigned from = s.how == 0 ? s.by % 32 : s.how == 1 ? i ^ s.by : s.how == 2 ? i - s.by : i + s.by;
            // Past the ends a lane keeps its own.
            if (s.how >= 2 && from >= 32) from = i;
            if (from >= 32 || !(there >> from & 1)) fail(at, "lane %u reads lane %u, which is not there", i, from);
            memcpy(s.value, before[from], s.size);
        }
    };
    meet(line, complete, &mine);
}

struct Vote {
    unsigned mask, result;
    bool value;
};

unsigned vote(int line, unsigned mask, bool value) {
    Vote mine{mask, 0, value};
    auto complete = [](void** lanes, unsigned there, int at) {
        unsigned ballot = 0;
        for (unsigned i = 0; i < 32; ++i)
            if (lanes[i] && static_cast<Vote*>(lanes[i])->value) ballot |= 1u << i;
        for (unsigned i = 0; i < 32; ++i) {
            if (!lanes[i]) continue;
            all_of(static_cast<Vote*>(lanes[i])->mask, there, at, "a vote");
            static_cast<Vote*>(lanes[i])->result = ballot;
        }
    };
    meet(line, complete, &mine);
    return mine.result;
}

struct Same {
    const void* p;
    size_t step;
};

void same_for_all(int line, const void* p, size_t step) {
    if (reinterpret_cast<uintptr_t>(p) % 32) fail(line, "a fragment lies at %p: not a multiple of 32 bytes", p);
    if (step % 16) fail(line, "rows of a fragment step by %zu bytes: not a multiple of 16", step);
    Same mine{p, step};
    auto complete = [](void** lanes, unsigned there, int at) {
        if (there != ~0u) fail(at, "a fragment moved by lanes %08x alone", there);
        const Same& one = *static_cast<Same*>(lanes[0]);
        for (unsigned i = 1; i < 32; ++i) {
            const Same& s = *static_cast<Same*>(lanes[i]);
            if (s.p != one.p || s.step != one.step) fail(at, "lanes 0 and %u do not name the same fragment", i);
        }
    };
    meet(line, complete, &mine);
}

} // namespace emulated
