"""Rewards with a fault, the message of each, and a reward under a policy."""

import sys
import time

import numpy as np
import torch

from pgraft_fast.rewards import PolicedReward, Policy

SAMPLES = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 2, 2)
PROMPTS, IDS = list("abcdefgh"), list(range(40, 48))
RIGHT = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


class Faulty:
    """The mean of a sample, after `times` failures, where a sample of `bad` is asked about; counts its calls."""

    name = "faulty"

    def __init__(self, fault, bad=range(8), times=1000):
        self.fault, self.bad, self.times, self.calls = fault, set(bad), times, 0

    def __call__(self, samples, prompts):
        self.calls += 1
        values = samples[:, 0, 0, 0].clone()
        hit = [i for i, value in enumerate(values.tolist()) if int(value) in self.bad]
        if hit and self.times:
            self.times -= 1
            return self.fault(values, hit)
        return values


def raises(values, hit):
    raise OSError("no\nluck")


def nan(values, hit):
    values[hit] = torch.tensor([float("nan"), float("inf")]).repeat(len(values))[: len(hit)]
    return values


def short(values, hit):
    return values[1:]


def nothing(values, hit):
    return None


def none_in_a_list(values, hit):
    return [None if i in hit else value for i, value in enumerate(values)]


def none_in_an_array(values, hit):
    array = values.numpy().astype(object)
    array[hit] = None
    return array


def masked(values, hit):
    return np.ma.masked_array(values.numpy(), [i in hit for i in range(len(values))])


def word_in_a_list(values, hit):
    return ["good" if i in hit else float(value) for i, value in enumerate(values)]


def pair_in_a_list(values, hit):
    return [torch.zeros(2) if i in hit else value for i, value in enumerate(values)]


def leaves(values, hit):
    sys.exit(7)


def hangs(values, hit):
    time.sleep(3.5)
    return values


FAULTS = {
    raises: r"raised OSError: no luck \(at samples 40 to 47\)",
    nan: r"gave no finite number for samples 42, 45",
    none_in_a_list: r"gave no finite number for samples 42, 45",
    none_in_an_array: r"gave no finite number for samples 42, 45",
    masked: r"gave no finite number for samples 42, 45",
    word_in_a_list: r"returned list, not numbers: 'good' at place 2 \(at samples 40 to 47\)",
    pair_in_a_list: r"returned list, not numbers: tensor\(\[0., 0.\]\) at place 2 \(at samples 40 to 47\)",
    short: r"returned shape \(7,\) for 8 samples; it must be \(8,\) \(at samples 40 to 47\)",
    nothing: r"returned NoneType, not numbers \(at samples 40 to 47\)",
    leaves: r"called sys.exit\(7\) \(at samples 40 to 47\)",
    hangs: r"did not answer within [\d.]+ s \(at samples 40 to 47\)(; its thread cannot be ended.*running)?",
}


def limit(fault):
    """Seconds: short where they must pass, long where an answer must come."""
    return 0.2 if fault is hangs else 30.0


def policed(reward, lines=None, **options):
    more = {key: options.pop(key) for key in ("batch_size", "check_order", "name") if key in options}
    log = (lambda line: None) if lines is None else lines.append
    return PolicedReward(reward, Policy(**{"timeout_seconds": 10.0, **options}), log=log, **more)
