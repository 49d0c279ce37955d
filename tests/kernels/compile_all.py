"""Compile every kernel for GPUs that need not be here; print target, case, registers, spills as tab-separated lines.

Usage: python compile_all.py [target ...], targets among sm_80, sm_90, sm_100, gfx942. Without arguments all of them:
every case on sm_90, on the others those of 32-bit states with the most options.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
FULL = "sm_90"
# Cases whose options another case of the same kernel has too.
LESSER = {
    "plain", "given", "given_noise", "log_prob", "clip_rescale", "best_of_n", "threshold", "preference", "dense", "5",
}  # fmt: skip


def tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def ptxas(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes by the assembler's own report."""
    target = re.search(r"\.target (sm_\w+)", ptx).group(1)
    newer = tools() / "ptxas-blackwell"
    program = newer if target.startswith("sm_1") and newer.exists() else tools() / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [program, "-v", f"--gpu-name={target}", "-O3", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", report))
    return registers, sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))


def compile_case(target: str, number: int) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pgraft_fast_kernels.compile_cases import cases

    name, kernel, signature, constants, num_warps, options = list(cases())[number]
    gpu = GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target[3:]), 32)
    # As at run time, where pointers and the usual sizes are multiples of 16.
    whole = [i for i, (key, kind) in enumerate(signature.items()) if kind.startswith("*") or key in ("size", "total")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in whole})
    built = triton.compile(source, target=gpu, options={"num_warps": num_warps, **options})
    if "ptx" in built.asm:
        registers, spills = ptxas(built.asm["ptx"])
    else:
        text = built.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text).group(1))
        # Scalar registers spill to lanes of vector registers; only vector registers spill to memory.
        spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text).group(1))
    return f"{target}\t{name}\t{registers}\t{spills}"


def wanted(target: str, name: str) -> bool:
    return target == FULL or not (name.endswith(("/fp16", "/bf16")) or set(name.split("/")) & LESSER)


def main() -> None:
    from pgraft_fast_kernels.compile_cases import cases

    names = [case[0] for case in cases()]
    work = [(t, i) for t in sys.argv[1:] or TARGETS for i, name in enumerate(names) if wanted(t, name)]
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        for line in pool.map(compile_case, *zip(*work, strict=True)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
