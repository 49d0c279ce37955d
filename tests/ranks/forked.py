"""Runs a script on ranks that are children of this process, which has loaded what each would take seconds for.

python forked.py SCRIPT JOBS, the latter JSON: [[size, arguments, where the ranks' output goes, less its number]].
"""

import json
import os
import runpy
import sys
import traceback

import ranked
import sklearn.datasets  # noqa: F401

import pgraft_fast.commands.subjects
import pgraft_fast.runs.run  # noqa: F401
from pgraft_fast.ops.pointers import library


def rank_of(script, size, arguments, out, rank, port):
    """In the child."""
    os.environ.update(ranked.environment(rank, size, port))
    os.dup2(os.open(f"{out}-{rank}", os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


script, jobs = sys.argv[1], json.loads(sys.argv[2])
if any("shapes" in argument for _, arguments, _ in jobs for argument in arguments):
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401
library()
for size, arguments, out in jobs:
    port, ranks = ranked.free_port(), []
    for rank in range(size):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            rank_of(script, size, arguments, out, rank, port)
    statuses = [os.waitpid(rank, 0)[1] for rank in ranks]
    if any(statuses):
        sys.exit(f"ranks of {size} ended with {statuses}")
