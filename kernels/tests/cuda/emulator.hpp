// The machine: a block's threads as fibres of one thread of the host, blocks one after the other, and a memory that
// knows who touched what. Nothing here is instrumented.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <string>
#include <vector>

#include "emulate.hpp"

namespace emulated {

enum class State { Ready, AtWarp, AtBlock, Done };

// One CUDA thread.
struct Thread {
    void* stack_pointer = nullptr;
    char *low = nullptr, *high = nullptr;
    unsigned id = 0;
    State state = State::Done;
    int line = 0;
    // The number of the barrier that it waits at; 0 is __syncthreads', which all reach at one line.
    unsigned barrier = 0;
    Complete complete = nullptr;
    void* lane = nullptr;
    // Registers that inline PTX declared, and copies and products in flight.
    std::map<std::string, uint64_t> registers;
    unsigned warp() const { return id / 32; }
};

// A launch in progress.
struct Machine {
    uint3 grid{}, block_index{};
    unsigned units = 0;
    // Which thread goes first: as they are numbered, or the last one.
    bool backwards = false;
    std::vector<Thread> threads;
    Thread* now = nullptr;
    void* scheduler = nullptr;
    // Counts meetings of the whole block, over all blocks; those of each warp.
    uint32_t epoch = 0;
    std::vector<uint32_t> warp_epochs;
    // Where threads of the block last met, for a deadlock's message.
    std::vector<char*> stacks;
};
extern Machine machine;

void launch(void (*entry)(void**), void** arguments);
// What a thread has under way at its start: nothing.
void forget_copies(const Thread* t);
void forget_products(const Thread* t);

// Memory that kernels may touch.
struct Region {
    const char* name;
    char *start, *end;
    // Bytes of an element: what the shadow keeps apart.
    unsigned grain;
    bool across_blocks;
};
void add_region(const Region& region);
void forget_regions();
void begin_block();
char* shared_start();
extern const size_t SHARED_BYTES;
extern const unsigned SHARED_WINDOW;

} // namespace emulated
