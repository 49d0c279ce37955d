"""Run on each rank by test_script.py: somebody's own script, with a model of theirs."""

import json
import sys

import torch
from torch import nn

import pgraft_fast as pf
from pgraft_fast.diffusion import Schedule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 4))

    def forward(self, x, t):
        return self.layers(torch.cat((x, t[:, None]), dim=1))


torch.manual_seed(int(sys.argv[2]))
rounds = []
config = pf.PGraftConfig(
    steps=4, candidates=4, keep=2, prompts=4, rounds=2, epochs=1, batch_size=8, evaluate=8, cut=0.25, run=sys.argv[1],
    budget=pf.Budget(gpu_hours=1.0),
)  # fmt: skip
result = pf.PGraftTrainer.from_model(
    Net(), Schedule.vp_linear(), lambda x, prompts: x[:, 0].tolist(), config=config, shape=(4,),
    log=lambda line: print(line, file=sys.stderr), on_round=lambda number, entry: rounds.append(number),
).train()  # fmt: skip
print(json.dumps([result.after.reward, result.gpu_hours, str(result.adapter), len(result.history), rounds]))
