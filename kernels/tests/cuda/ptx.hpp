// Inline PTX, read once a call site and run a thread at a time.
#pragma once

#include "emulator.hpp"

namespace emulated {

// An operand as it is written: `%0`, a register's name, a number, `{…}`, `[…]`, `_`.
struct Arg {
    enum Kind { Slot, Name, Number, Group, Address, Nothing } kind = Nothing;
    unsigned slot = 0;
    std::string name;
    uint64_t number = 0;
    std::vector<Arg> parts;
};

struct Instruction {
    std::string opcode, predicate;
    bool negated = false;
    std::vector<Arg> args;
    bool has(const char* part) const { return ("." + opcode + ".").find("." + std::string(part) + ".") != std::string::npos; }
};

// One thread at one instruction.
struct Site {
    Thread* thread;
    const Operand* operands;
    const Instruction* instruction;
    int line;
    const std::vector<Arg>& args() const { return instruction->args; }
    uint64_t get(const Arg& a) const;
    void put(const Arg& a, uint64_t value) const;
    float get_float(const Arg& a) const { return float_of(uint32_t(get(a))); }
    void put_float(const Arg& a, float x) const { put(a, bits_of(x)); }
    // The memory at a shared address, or at a generic one.
    char* shared_at(uint64_t address, size_t bytes) const;
};

// Every lane of the warp must be at this instruction; `run` sees them all.
using Together = void (*)(Site* const* lanes, int line);
void together(Site& s, Together run);

void copy_async(Site& s);
void commit_copies(Site& s);
void wait_copies(Site& s);
void mma(Site& s);
void load_matrices(Site& s);
void wgmma(Site& s);
void commit_products(Site& s);
void wait_products(Site& s);

} // namespace emulated
