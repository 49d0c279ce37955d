"""Run on each rank by test_sharded.py: the runs of these configs, one after the other, as commands make them."""

import sys

import torch.distributed as dist

from pgraft_fast.cli import main

dist.init_process_group("gloo")
statuses = [main(["finetune", config]) for config in sys.argv[1:]]
dist.destroy_process_group()
sys.exit(max(statuses))
