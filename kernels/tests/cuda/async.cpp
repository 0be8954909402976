// cp.async: copies of 4, 8 or 16 bytes from global to shared memory that land when their group is waited for. In one
// turn they land as late as they may, in the other at once: a text must be right either way.

#include "ptx.hpp"

namespace emulated {

namespace {

struct Copy {
    char* to;
    const char* from;
    size_t bytes, size;
    int line;
};
// Of each thread: the groups that are under way, the last one still open.
std::map<const Thread*, std::vector<std::vector<Copy>>> under_way;

void land(const Copy& c) {
    reads(c.from, c.size, c.line);
    writes(c.to, c.bytes, c.line);
    memcpy(c.to, c.from, c.size);
    memset(c.to + c.size, 0, c.bytes - c.size);
}

std::vector<std::vector<Copy>>& groups(const Thread* t) {
    auto& g = under_way[t];
    if (g.empty()) g.emplace_back();
    return g;
}

} // namespace

void copy_async(Site& s) {
    const auto& a = s.args();
    Copy c{};
    c.bytes = s.get(a[2]);
    c.size = a.size() > 3 ? s.get(a[3]) : c.bytes;
    c.line = s.line;
    if ((c.bytes != 4 && c.bytes != 8 && c.bytes != 16) || c.size > c.bytes)
        fail(s.line, "a copy of %zu bytes out of %zu", c.bytes, c.size);
    if (s.instruction->has("cg") && c.bytes != 16) fail(s.line, "cp.async.cg copies 16 bytes, not %zu", c.bytes);
    c.to = s.shared_at(s.get(a[0]), c.bytes);
    c.from = reinterpret_cast<const char*>(s.get(a[1]));
    if (reinterpret_cast<uintptr_t>(c.to) % c.bytes || reinterpret_cast<uintptr_t>(c.from) % c.bytes)
        fail(s.line, "a copy of %zu bytes from %p to %p, which are not multiples of it", c.bytes,
             static_cast<const void*>(c.from), static_cast<void*>(c.to));
    if (machine.backwards)
        land(c);
    else
        groups(s.thread).back().push_back(c);
}

void commit_copies(Site& s) { groups(s.thread).emplace_back(); }

void wait_copies(Site& s) {
    auto& g = groups(s.thread);
    const bool all = s.args().empty();
    const size_t keep = all ? 0 : s.get(s.args()[0]) + 1;
    while (g.size() > keep) {
        for (const Copy& c : g.front()) land(c);
        g.erase(g.begin());
    }
}

void forget_copies(const Thread* t) { under_way.erase(t); }

} // namespace emulated
