"""Whether a contrast training diverged, told by what its steps compute anyway."""

from pgraft_fast.finetune.training import TrainReport

# Measured on digits, shapes and molecules. Change: 2.1 at most where the reward rose, 3.7 and more where few rows of a
# great strength lowered it. Excess: 0.01 at most with the shipped learning rates, 0.40 with one of 1e-2 that raised the
# reward, too; 0.69 and more in the first round of rates that were too high, less again in their later rounds.
_MOST_CHANGE, _MOST_EXCESS = 3.0, 0.5


def divergence(report: TrainReport) -> str | None:
    """One line with the figure and the mend, or None.

    change: |n - o|^2 / |y - o|^2; where it is large, the rows are learned by heart and thrown far beyond themselves.
    excess: (loss - loss of n = o) / |y - o|^2; above 0 the trained weights fit their rows worse than those that they
    started from.
    """
    if report.change is None or report.excess is None:
        return None
    if report.change > _MOST_CHANGE:
        return (
            f"contrast may have diverged: the model was moved {report.change:.1f} times as far as its rows lie from it "
            f"(mean squares; {_MOST_CHANGE:g} are the limit); lower train.strength or train.learning_rate, or accept "
            "more rows"
        )
    if report.excess > _MOST_EXCESS:
        return (
            f"contrast may have diverged: the loss is above that of the model which it started from, by "
            f"{report.excess:.2f} of the rows' spread ({_MOST_EXCESS:g} is the limit); lower train.learning_rate"
        )
    return None
