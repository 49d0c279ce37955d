// Chooses the instruction set at run time: a library built on one processor runs on an older one.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace pgraft {

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

const Kernels& choose() {
#if defined(__x86_64__)
  // PGRAFT_FAST_ISA lowers the choice, for tests; it never raises it.
  const char* wanted = std::getenv("PGRAFT_FAST_ISA");
  const auto allowed = [wanted](const char* name) {
    if (wanted == nullptr || std::strcmp(wanted, "avx512") == 0) return true;
    return std::strcmp(wanted, "avx2") == 0 && std::strcmp(name, "avx512") != 0;
  };
  __builtin_cpu_init();
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return avx512::table;
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return avx2::table;
#endif
  return baseline::table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace pgraft
