// The table of one instruction set; compiled once for each, see pgraft_fast/ops/extension.py.
#include "kernels.h"

#include "anderson.h"
#include "elementwise.h"
#include "gather.h"
#include "reward_filter.h"
#include "solver_step.h"

#define PGRAFT_NAME_2(name) #name
#define PGRAFT_NAME(name) PGRAFT_NAME_2(name)

namespace pgraft::PGRAFT_ISA {

extern const Kernels table;
const Kernels table = {
    PGRAFT_NAME(PGRAFT_ISA), philox_normal,  philox_words,        solver_step_part, solver_step_sample,
    partial_noise,           weighted_error, weighted_error_grad, reward_filter,    reward_pack,
    gather_rows,             fixed_point,    anderson_mix,
};

}  // namespace pgraft::PGRAFT_ISA
