// Runs one launch: `kernel IN OUT`. IN holds words (cubes x, y, z, units, buffers) and each buffer as (kind, grain,
// bytes, data); OUT gets the data of those of kind 2, results. The launch runs twice, the second time with the threads
// the other way round: a kernel that does not care which thread goes first gives the same bits.

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulator.hpp"

// Made from the kernel's text.
extern void (*const emulated_entry)(void**);
extern const unsigned emulated_parameters;

namespace {

struct Buffer {
    uint32_t kind, grain;
    std::vector<char> before;
    char* at;
    std::string name;
};

uint32_t word(FILE* f) {
    uint32_t w = 0;
    if (fread(&w, 4, 1, f) != 1) exit(2);
    return w;
}

// Room between walls that a stray address hits.
char* room(size_t bytes) {
    const size_t wall = 1 << 16, whole = ((bytes + 4095) & ~size_t(4095)) + 2 * wall;
    void* p = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char* start = static_cast<char*>(p) + wall;
    if (p == MAP_FAILED || (bytes && mprotect(start, bytes, PROT_READ | PROT_WRITE))) exit(2);
    return start;
}

void strayed(int, siginfo_t* info, void*) {
    emulated::fail(0, "touches memory at %p, where nothing lies", info->si_addr);
}

} // namespace

int main(int count, char** args) {
    if (count != 3) return 2;
    static char signal_stack[1 << 16];
    stack_t stack{};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, nullptr);
    struct sigaction action{};
    action.sa_sigaction = strayed;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);

    FILE* in = fopen(args[1], "rb");
    if (!in) return 2;
    emulated::Machine& m = emulated::machine;
    m.grid = {word(in), word(in), word(in)};
    m.units = word(in);
    std::vector<Buffer> buffers(word(in));
    if (buffers.size() != emulated_parameters) {
        fprintf(stderr, "%zu buffers for a kernel of %u parameters\n", buffers.size(), emulated_parameters);
        return 3;
    }
    std::vector<void*> arguments;
    const char* kinds[] = {"the metadata", "operand", "result", "the lengths"};
    for (size_t i = 0; i < buffers.size(); ++i) {
        Buffer& b = buffers[i];
        b.kind = word(in);
        b.grain = word(in);
        b.before.resize(word(in));
        b.name = std::string(kinds[b.kind]) + " (parameter " + std::to_string(i) + ")";
        if (fread(b.before.data(), 1, b.before.size(), in) != b.before.size()) return 2;
        b.at = room(b.before.size());
        arguments.push_back(b.at);
    }
    fclose(in);

    std::vector<std::vector<char>> first;
    for (int turn = 0; turn < 2; ++turn) {
        emulated::forget_regions();
        for (Buffer& b : buffers) {
            memcpy(b.at, b.before.data(), b.before.size());
            emulated::add_region({b.name.c_str(), b.at, b.at + b.before.size(), b.grain, true});
        }
        m.backwards = turn == 1;
        emulated::launch(emulated_entry, arguments.data());
        for (size_t i = 0, r = 0; i < buffers.size(); ++i) {
            const Buffer& b = buffers[i];
            if (b.kind != 2) {
                if (memcmp(b.at, b.before.data(), b.before.size())) {
                    fprintf(stderr, "%s was written\n", b.name.c_str());
                    return 3;
                }
            } else if (turn == 0) {
                first.emplace_back(b.at, b.at + b.before.size());
            } else if (memcmp(first[r++].data(), b.at, b.before.size())) {
                fprintf(stderr, "%s depends on which thread goes first\n", b.name.c_str());
                return 3;
            }
        }
    }
    FILE* out = fopen(args[2], "wb");
    if (!out) return 2;
    for (const auto& data : first)
        if (fwrite(data.data(), 1, data.size(), out) != data.size()) return 2;
    return fclose(out) ? 2 : 0;
}
