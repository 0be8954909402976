// Memory: the hooks that -fsanitize=thread and -fsanitize=alignment,bounds-strict call, answered by a shadow that says who
// last wrote and read each element, and when. Two threads that touch one element, one of them writing, must have met
// in between: at a barrier of the block, or of their warp. Blocks never meet.

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "emulator.hpp"

// Where the program with the kernel lies.
extern char *const emulated_image_start, *const emulated_image_end;

namespace emulated {

const size_t SHARED_BYTES = 227 << 10;
const unsigned SHARED_WINDOW = 1 << 10;

namespace {

constexpr uint32_t NOBODY = ~0u, SEVERAL = ~0u - 1;

// When, where and by whom.
struct Visit {
    uint32_t epoch = 0, warp_epoch = 0, block = NOBODY, thread = NOBODY;
    // The warp of all who came in this epoch, or SEVERAL.
    uint32_t warp = NOBODY;
};
struct Cell {
    // Stores, loads, and atomic instructions, which clash with the others but not among themselves.
    Visit wrote, read, changed;
};
enum class How { Read, Write, Atomic };
struct Tracked {
    Region region;
    std::vector<Cell> cells;
};
std::vector<Tracked> regions;
size_t last;
char* shared_memory;
size_t claimed;

uint32_t block_number() {
    const uint3 b = machine.block_index, g = machine.grid;
    return (b.z * g.y + b.y) * g.x + b.x;
}

// Whether that visit is not over when thread `t` comes.
bool clashes(const Visit& v, const Thread& t) {
    if (v.block == NOBODY) return false;
    if (v.block != block_number()) return true;
    if (v.epoch != machine.epoch) return false;
    if (v.thread == t.id) return false;
    return v.warp != t.warp() || v.warp_epoch == machine.warp_epochs[t.warp()];
}

void enter(Visit& v, const Thread& t) {
    const uint32_t block = block_number();
    const bool joins = v.block == block && v.epoch == machine.epoch && v.thread != t.id;
    const bool other_block = v.block != NOBODY && v.block != block;
    v.thread = joins ? SEVERAL : t.id;
    v.warp = joins && v.warp != t.warp() ? SEVERAL : t.warp();
    v.block = other_block ? SEVERAL : block;
    v.epoch = machine.epoch;
    v.warp_epoch = machine.warp_epochs[t.warp()];
}

Tracked* find(const char* p, size_t bytes) {
    if (last < regions.size() && p >= regions[last].region.start && p + bytes <= regions[last].region.end)
        return &regions[last];
    for (last = 0; last < regions.size(); ++last)
        if (p >= regions[last].region.start && p < regions[last].region.end) return &regions[last];
    return nullptr;
}

void touch(const char* p, size_t bytes, How how, int line) {
    const Thread* t = machine.now;
    if (!t || !bytes || (p >= t->low && p < t->high)) return;
    Tracked* r = find(p, bytes);
    const char* verb = how == How::Read ? "reads" : "writes";
    if (!r) {
        // Constants and tables of the compiler lie in the program itself.
        if (how == How::Read && p >= emulated_image_start && p < emulated_image_end) return;
        for (const Tracked& near : regions)
            if (p >= near.region.start - 65536 && p < near.region.end + 65536)
                fail(line, "%s %zu bytes at byte %td of %s, which has %td", verb, bytes, p - near.region.start,
                     near.region.name, near.region.end - near.region.start);
        fail(line, "%s %zu bytes at %p, where nothing lies", verb, bytes, static_cast<const void*>(p));
    }
    const Region& region = r->region;
    const ptrdiff_t at = p - region.start, size = region.end - region.start;
    if (at + ptrdiff_t(bytes) > size)
        fail(line, "%s %zu bytes at byte %td of %s, which has %td", verb, bytes, at, region.name, size);
    for (size_t c = size_t(at) / region.grain; c <= (size_t(at) + bytes - 1) / region.grain; ++c) {
        Cell& cell = r->cells[c];
        if (!region.across_blocks) {
            // A block's own memory begins anew.
            if (cell.wrote.block != block_number()) cell.wrote = Visit();
            if (cell.read.block != block_number()) cell.read = Visit();
            if (cell.changed.block != block_number()) cell.changed = Visit();
        }
        if (clashes(cell.wrote, *t))
            fail(line, "%s element %zu of %s, which thread %u wrote with no barrier between", verb, c, region.name,
                 cell.wrote.thread);
        if (how != How::Atomic && clashes(cell.changed, *t))
            fail(line, "%s element %zu of %s, which another thread changes atomically with no barrier between", verb, c,
                 region.name);
        if (how != How::Read && clashes(cell.read, *t))
            fail(line, "writes element %zu of %s, which another thread reads with no barrier between", c,
                 region.name);
        enter(how == How::Write ? cell.wrote : how == How::Read ? cell.read : cell.changed, *t);
    }
}

} // namespace

void add_region(const Region& region) {
    Tracked t{region, {}};
    t.cells.resize(size_t(region.end - region.start) / region.grain + 1);
    regions.push_back(std::move(t));
}
void forget_regions() {
    regions.clear();
    claimed = 0;
}

char* shared_start() {
    if (!shared_memory) {
        void* p =
            mmap(nullptr, SHARED_BYTES + (2 << 16), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        shared_memory = static_cast<char*>(p) + (1 << 16);
    }
    return shared_memory;
}

// What a block's memory holds before anybody writes reads as NaN.
void begin_block() {
    if (claimed) memset(shared_start(), 0xff, claimed);
}

char* shared(size_t offset, size_t bytes) {
    char* start = shared_start();
    const size_t stop = offset + bytes;
    if (stop > SHARED_BYTES) fail(0, "%zu bytes of a block's memory, which has %zu", stop, SHARED_BYTES);
    if (stop > claimed) {
        memset(start + claimed, 0xff, stop - claimed);
        claimed = stop;
    }
    for (Tracked& t : regions) {
        if (t.region.start != start) continue;
        if (t.region.end < start + stop) {
            t.region.end = start + stop;
            t.cells.resize(stop / t.region.grain + 1);
        }
        return start + offset;
    }
    add_region({"shared memory", start, start + stop, 2, false});
    return start + offset;
}

unsigned shared_address(const void* p) {
    const char* start = shared_start();
    const ptrdiff_t at = static_cast<const char*>(p) - start;
    if (at < 0 || at >= ptrdiff_t(SHARED_BYTES)) fail(0, "%p is not in the block's memory", p);
    return unsigned(at) + SHARED_WINDOW;
}

void reads(const void* p, size_t bytes, int line) { touch(static_cast<const char*>(p), bytes, How::Read, line); }
void writes(const void* p, size_t bytes, int line) { touch(static_cast<const char*>(p), bytes, How::Write, line); }
void changes(const void* p, size_t bytes, int line) { touch(static_cast<const char*>(p), bytes, How::Atomic, line); }

} // namespace emulated

// The hooks know no line; `addr2line` finds it from the address, which the message names.
static int caller(void* at) { return -int(static_cast<char*>(at) - emulated_image_start); }
#define HOOKS(n)                                                                                                       \
    extern "C" void __tsan_read##n(void* p) { emulated::reads(p, n, caller(__builtin_return_address(0))); }           \
    extern "C" void __tsan_write##n(void* p) { emulated::writes(p, n, caller(__builtin_return_address(0))); }         \
    extern "C" void __tsan_unaligned_read##n(void* p) { emulated::reads(p, n, caller(__builtin_return_address(0))); } \
    extern "C" void __tsan_unaligned_write##n(void* p) { emulated::writes(p, n, caller(__builtin_return_address(0))); } \
    extern "C" void __tsan_volatile_read##n(void* p) { emulated::reads(p, n, caller(__builtin_return_address(0))); }  \
    extern "C" void __tsan_volatile_write##n(void* p) { emulated::writes(p, n, caller(__builtin_return_address(0))); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t n) { emulated::reads(p, n, caller(__builtin_return_address(0))); }
extern "C" void __tsan_write_range(void* p, size_t n) { emulated::writes(p, n, caller(__builtin_return_address(0))); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
extern "C" void __tsan_init(void) {}

struct Place {
    const char* file;
    uint32_t line, column;
};
struct Mismatch {
    Place place;
    const void* type;
    unsigned char log_align, kind;
};
extern "C" void __ubsan_handle_type_mismatch_v1(Mismatch* m, uintptr_t p) {
    emulated::fail(int(m->place.line), "an access at %#lx, which is not a multiple of %u bytes", static_cast<unsigned long>(p),
                   1u << m->log_align);
}
struct Bounds {
    Place place;
};
extern "C" void __ubsan_handle_out_of_bounds(Bounds* b, uintptr_t i) {
    emulated::fail(int(b->place.line), "index %lu is outside its array", static_cast<unsigned long>(i));
}
