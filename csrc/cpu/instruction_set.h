// Which instruction set the CPU kernels use: 0 portable, 1 AVX2 + FMA + F16C, 2 AVX-512 (F, DQ, BW,
// VL).
#pragma once

namespace cmsolvers {

int instruction_set();
int best_instruction_set();
void set_instruction_set(
    int level);  // throws std::invalid_argument where this processor or build lacks it
const char* instruction_set_name(int level);

}  // namespace cmsolvers
