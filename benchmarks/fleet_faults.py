"""What failures and stragglers cost a run whose rounds end together: closed forms, and simulations that hold them.

A round of length L is saved when it ends. GPUs fail independently, so that the first of R fails after an exponential
time of rate lambda = R * rate; what the round had done is lost, the restart takes D, in which another may fail, and the
round begins again. Then

    E[time of a round] = (e^(lambda L) - 1) * (1 / lambda + E[restart]),    E[restart] = (e^(lambda D) - 1) / lambda

as e^(lambda L) - 1 failures are expected before a round without one. Daly 2006, doi 10.1016/j.future.2004.11.016.

A round takes as long as its slowest GPU: with times of mean 1 and a normal spread s, 1 + s E[max of R normals].
"""

import math

import torch


def round_seconds(length: float, restart: float, rate: float) -> float:
    """Expected, of a round that is not interrupted in `length` s. rate: failures a second of all GPUs together."""
    if rate == 0.0:
        return length
    return math.expm1(rate * length) * (1.0 / rate + math.expm1(rate * restart) / rate)


def goodput(length: float, restart: float, rate: float) -> float:
    """Share of the time in which work is done that stays."""
    return length / round_seconds(length, restart, rate)


def simulated_round_seconds(
    length: float, restart: float, rate: float, rounds: int, seed: int = 0
) -> tuple[float, float]:
    """Mean and its standard error over rounds that are played, failure by failure."""
    generator = torch.Generator().manual_seed(seed)
    seconds = torch.zeros(rounds, dtype=torch.float64)
    done, working = torch.zeros(rounds, dtype=torch.bool), torch.ones(rounds, dtype=torch.bool)
    while not bool(done.all()):
        needs = torch.where(working, length, restart).to(torch.float64)
        fails_after = torch.empty(rounds, dtype=torch.float64).exponential_(rate, generator=generator)
        through = fails_after >= needs
        seconds += torch.where(done, 0.0, torch.minimum(fails_after, needs))
        # After a failure comes a restart, after a whole restart the round again.
        done |= working & through
        working = through
    return float(seconds.mean()), float(seconds.std() / math.sqrt(rounds))


def slowest(gpus: int, spread: float) -> float:
    """E[max of R times], of mean 1 and standard deviation `spread`: 1 + s R int x phi(x) Phi(x)^(R - 1) dx."""
    x = torch.linspace(-10.0, 10.0, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    below = torch.special.ndtr(x)
    return 1.0 + spread * float(torch.trapezoid(gpus * x * density * below ** (gpus - 1), x))


def simulated_slowest(gpus: int, spread: float, rounds: int, seed: int = 0) -> tuple[float, float]:
    """Mean and its standard error over drawn rounds."""
    generator = torch.Generator().manual_seed(seed)
    times = 1.0 + spread * torch.randn(rounds, gpus, generator=generator, dtype=torch.float64).amax(dim=1)
    return float(times.mean()), float(times.std() / math.sqrt(rounds))
