// Threads as fibres: each runs until it must wait; the order is fixed, so a run repeats exactly.

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulator.hpp"

#if defined(__x86_64__)
// Saves what a call must keep on the own stack, and takes up another.
asm(R"(
.text
.globl emulated_switch
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void emulated_switch(void** save, void* to);
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulated_switch
emulated_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
extern "C" void emulated_switch(void** save, void* to);
#else
#error "no switch of fibres for this processor: add one to fibres.cpp"
#endif

namespace emulated {

Machine machine;
static void (*entry_of)(void**);
static void** arguments_of;
static const size_t STACK = 256 << 10;

void fail(int line, const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    const Thread* t = machine.now;
    fprintf(stderr, "line %d: ", line);
    vfprintf(stderr, format, rest);
    uint3 b = machine.block_index;
    if (t) fprintf(stderr, " (thread %u of block %u,%u,%u)", t->id, b.x, b.y, b.z);
    fprintf(stderr, "\n");
    va_end(rest);
    fflush(stderr);
    _exit(3);
}

static void yield() { emulated_switch(&machine.now->stack_pointer, machine.scheduler); }

static void body() {
    entry_of(arguments_of);
    machine.now->state = State::Done;
    yield();
    abort();
}

// Makes a fibre that starts at `body`, its stack full of what reads as NaN.
static void start(Thread& t, unsigned id) {
    if (!t.low) {
        void* p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) fail(0, "no memory for a thread's stack");
        t.low = static_cast<char*>(p);
        t.high = t.low + STACK;
    }
    t.id = id;
    t.state = State::Ready;
    t.registers.clear();
    forget_copies(&t);
    forget_products(&t);
    void** top = reinterpret_cast<void**>(t.high) - 4;
#if defined(__x86_64__)
    // After the `ret` into `body` the stack must be as after a call: 8 modulo 16.
    top[1] = nullptr;
    top[0] = reinterpret_cast<void*>(body);
    for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
    t.stack_pointer = top - 6;
#else
    char* sp = reinterpret_cast<char*>(top) - 160;
    memset(sp, 0, 160);
    reinterpret_cast<void**>(sp)[11] = reinterpret_cast<void*>(body);
    t.stack_pointer = sp;
#endif
}

// Everybody who waits in a warp, once nobody in it can go on: those at one line are a group.
static bool release_warp(unsigned warp) {
    unsigned first = warp * 32, last = first + 32 < machine.units ? first + 32 : machine.units;
    unsigned waiting = 0;
    for (unsigned i = first; i < last; ++i) {
        if (machine.threads[i].state == State::Ready) return false;
        if (machine.threads[i].state == State::AtWarp) waiting |= 1u << (i - first);
    }
    bool any = waiting != 0;
    while (waiting) {
        const Thread& leader = machine.threads[first + unsigned(__builtin_ctz(waiting))];
        int line = leader.line;
        Complete complete = leader.complete;
        void* lanes[32] = {};
        unsigned mask = 0;
        for (unsigned i = first; i < last; ++i) {
            Thread& t = machine.threads[i];
            if (waiting >> (i - first) & 1 && t.line == line && t.complete == complete) {
                mask |= 1u << (i - first);
                lanes[i - first] = t.lane;
                t.state = State::Ready;
            }
        }
        waiting &= ~mask;
        machine.now = &machine.threads[first + unsigned(__builtin_ctz(mask))];
        complete(lanes, mask, line);
        machine.now = nullptr;
    }
    return any;
}

// The barrier of the block: threads that ended do not count, all others must be at the same one.
static bool release_block() {
    const Thread* one = nullptr;
    for (Thread& t : machine.threads) {
        if (t.state == State::Done) continue;
        if (t.state != State::AtBlock) return false;
        if (!one) one = &t;
        if (t.barrier != one->barrier || (!t.barrier && t.line != one->line)) {
            machine.now = &t;
            fail(t.line, "a barrier that not all reach: thread %u waits at line %d", one->id, one->line);
        }
    }
    for (Thread& t : machine.threads)
        if (t.state == State::AtBlock) t.state = State::Ready;
    ++machine.epoch;
    return one != nullptr;
}

static void run_block() {
    machine.warp_epochs.assign((machine.units + 31) / 32, 0);
    ++machine.epoch;
    begin_block();
    for (unsigned i = 0; i < machine.units; ++i) start(machine.threads[i], i);
    for (;;) {
        bool went = false, alive = false;
        for (unsigned k = 0; k < machine.units; ++k) {
            Thread& t = machine.threads[machine.backwards ? machine.units - 1 - k : k];
            alive |= t.state != State::Done;
            if (t.state != State::Ready) continue;
            machine.now = &t;
            emulated_switch(&machine.scheduler, t.stack_pointer);
            machine.now = nullptr;
            went = true;
        }
        if (!alive) return;
        for (unsigned w = 0; w < machine.warp_epochs.size(); ++w) went |= release_warp(w);
        went |= release_block();
        if (went) continue;
        for (Thread& t : machine.threads)
            if (t.state != State::Done) {
                machine.now = &t;
                fail(t.line, "a deadlock: what this thread waits for never comes");
            }
    }
}

void launch(void (*entry)(void**), void** arguments) {
    entry_of = entry;
    arguments_of = arguments;
    machine.threads.resize(machine.units);
    for (unsigned z = 0; z < machine.grid.z; ++z)
        for (unsigned y = 0; y < machine.grid.y; ++y)
            for (unsigned x = 0; x < machine.grid.x; ++x) {
                machine.block_index = {x, y, z};
                run_block();
            }
}

uint3 thread_index() { return {machine.now->id, 0, 0}; }
uint3 block_index() { return machine.block_index; }
uint3 grid_size() { return machine.grid; }
uint3 block_size() { return {machine.units, 1, 1}; }
unsigned lane() { return machine.now->id % 32; }

void sync_block(int line, unsigned barrier) {
    machine.now->state = State::AtBlock;
    machine.now->line = line;
    machine.now->barrier = barrier;
    yield();
}

void meet(int line, Complete complete, void* lane) {
    Thread& t = *machine.now;
    t.state = State::AtWarp;
    t.line = line;
    t.complete = complete;
    t.lane = lane;
    yield();
}

} // namespace emulated
