"""Run on each rank by test_runs.py: the rounds of these configs, one after the other; their histories as JSON."""

import json
import sys
from pathlib import Path

from pgraft_fast.commands.pipeline_config import read_run_config
from pgraft_fast.commands.subjects import subject_of
from pgraft_fast.finetune import Ledger
from pgraft_fast.ranks.start import joined
from pgraft_fast.runs.run import trainer_of


def silent(line):
    pass


def history_of(config, ranks):
    settings = read_run_config(Path(config), None, None).model_copy(update={"mode": "eager"})
    run, subject = Path(settings.run), subject_of(settings, silent)
    run.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(run / "ledger.jsonl" if ranks.first else None, ranks=ranks.size)
    trainer = trainer_of(subject, run, ledger, log=silent, ranks=ranks)
    trainer.run_rounds()
    ledger.close(finished=True)
    subject.close()
    return {"rounds": trainer.history, "spent": ledger.summary()}


with joined() as ranks:
    print(json.dumps({Path(config).stem: history_of(config, ranks) for config in sys.argv[1:]}))
