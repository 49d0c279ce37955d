"""Run on each rank by test_runs.py: the runs of these configs, one after the other, as the command line makes them."""

import sys

import torch.distributed as dist

from pgraft_fast.cli import main

dist.init_process_group("gloo")
statuses = [main(["finetune", config]) for config in sys.argv[1:]]
dist.destroy_process_group()
sys.exit(max(statuses))
