"""The first line of a run's report: the method by its name, and what its cut is."""

import pytest
from tiny import tiny_config

from pgraft_fast.cli import main
from pgraft_fast.tasks.digits import DigitsSettings, digits_task


@pytest.mark.parametrize(
    ("method", "lead"),
    [
        ("pgraft", "P-GRAFT, cut 0.25 of the steps, a log-SNR of {level:.2f}, objective state, 1 round(s)"),
        ("graft", "GRAFT, objective state, 1 round(s)"), ("nft", "DiffusionNFT, 1 round(s)"),
        ("ddpo", "DDPO, importance, 1 round(s)"),
    ],
)  # fmt: skip
def test_the_method_and_its_cut(tmp_path, method, lead):
    config = tiny_config(tmp_path, rounds=1)
    config.write_text(f'method = "{method}"\n' + config.read_text().replace('method = "pgraft"\n', ""))
    assert main(["finetune", str(config)]) == 0
    (page,) = tmp_path.rglob("report/index.html")
    level = digits_task(DigitsSettings()).schedule.cut_logsnr(0.25)
    assert lead.format(level=level) in page.read_text()
