#include "emulator.hpp"
namespace emulated {
void ptx(int line, const char* text, const Operand*, unsigned, unsigned) { fail(line, "no such instruction: %s", text); }
}
