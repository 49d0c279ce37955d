"""A batch in parts with a thread each: the same bits, nothing shared that must not be, and nothing left behind."""

import contextvars
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import pgraft_fast as pf
from pgraft_fast.errors import InputError
from pgraft_fast.finetune.execution import _Twin
from pgraft_fast.inverse_noise import generate
from pgraft_fast.sampling.recorded import record
from pgraft_fast.tasks.digits import DigitsSettings, digits_task
from pgraft_fast.threads import LEAST_SHARED, Team, team_of
from pgraft_fast.threads.parts import is_thread_safe, number_of_parts

CPU = torch.device("cpu")
SCHEDULE = pf.Schedule.cosine()
SHARED = contextvars.ContextVar("SHARED", default="nothing")


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    assert not [thread for thread in threading.enumerate() if thread.name == "pgraft-fast-part"]


class Calls:
    """(thread, its number of torch's threads, rows) of each call."""

    def __init__(self):
        self.all, self.lock = [], threading.Lock()

    def add(self, rows):
        with self.lock:
            self.all.append((threading.get_ident(), torch.get_num_threads(), rows))

    def rows(self):
        return sorted(rows for _, _, rows in self.all)


class Net(nn.Module):
    """A perceptron on states of 64 numbers that has enough to do for several threads from 64 rows on."""

    thread_safe = True

    def __init__(self, width=1024):
        super().__init__()
        torch.manual_seed(width)
        self.layers = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, 64))
        self.calls = Calls()

    def forward(self, x, t, condition=None):
        self.calls.add(len(x))
        out = self.layers(x.flatten(1)).view_as(x)
        return out if condition is None else out + condition.view(-1, 1, 1, 1)


SHAPE = (1, 8, 8)


def roll(model, n=256, **more):
    return pf.rollout(model, SCHEDULE, shape=SHAPE, n=n, steps=3, **more)


def whole(run):
    """What one thread makes of it."""
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(2)


def test_each_thread_makes_its_part_of_the_samples():
    net = Net()
    drawn = roll(net, 300, batch_size=256, cuts=(0.3,), condition=torch.arange(300.0))
    threads = {thread for thread, _, rows in net.calls.all if rows == 128}
    assert net.calls.rows() == [44] * 3 + [128] * 6 and len(threads) == 2 and threading.get_ident() in threads
    assert {number for _, number, rows in net.calls.all if rows == 128} == {1}
    assert {number for _, number, rows in net.calls.all if rows == 44} == {2}
    single = whole(lambda: roll(net, 300, batch_size=256, cuts=(0.3,), condition=torch.arange(300.0)))
    assert torch.equal(drawn.x_0, single.x_0) and torch.equal(drawn.x_cut[0.3], single.x_cut[0.3])
    assert drawn.model_calls == single.model_calls == 900
    assert torch.get_num_threads() == 2


def test_digits_are_the_same_bits_for_any_number_of_threads():
    """Candidates, a handover, guidance, log-densities and the sampler's exact inverse."""
    task, ids = digits_task(DigitsSettings()), torch.arange(200)
    how = {"shape": task.shape, "parameterization": task.parameterization, "steps": 3, "sample_ids": ids}
    label = (ids % 10).to(torch.int64)
    model = pf.guided(task.model, 2.0, torch.tensor([10]))
    twin = _Twin(task.model, {})
    flow = digits_task(DigitsSettings(variant="flow")).model

    def run():
        inversion = pf.invert(flow, drawn, 3, max_iterations=3)
        return [
            pf.rollout(task.model, task.schedule, **how).x_0,
            pf.rollout(model, task.schedule, condition=label, **how).x_0,
            pf.rollout(task.model, task.schedule, tuned=twin, cut=0.4, **how).x_0,
            record(task.model, task.schedule, **how).states,
            record(task.model, task.schedule, **how).log_prob,
            generate(flow, drawn, 3),
            inversion.round_trip, inversion.contraction_of_step,
        ]  # fmt: skip

    drawn = pf.rollout(task.model, task.schedule, **how).x_0
    assert is_thread_safe(model) and is_thread_safe(twin) and is_thread_safe(flow)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        for in_parts, alone in zip(run(), whole(run), strict=True):
            assert torch.equal(in_parts.nan_to_num(), alone.nan_to_num())


def test_every_loop():
    net, noise = Net(), torch.randn(256, *SHAPE)
    for run, calls in (
        (lambda: record(net, SCHEDULE, shape=SHAPE, sample_ids=torch.arange(256), steps=3).states, 3),
        (lambda: generate(net, noise, 3), 3),
        (lambda: pf.invert(net, noise, 1, max_iterations=1, tolerance=1e-9, round_trip_limit=1e9).round_trip, 5),
    ):
        net.calls.all.clear()
        got = run()
        assert net.calls.rows() == [128] * 2 * calls and len({thread for thread, _, _ in net.calls.all}) == 2
        assert torch.equal(got, whole(run))


def test_samples_that_leave_the_batch():
    """Each part goes on with those of its own that have not converged."""
    net, noise = Net(), torch.randn(256, *SHAPE) * torch.linspace(0.1, 3.0, 256).view(-1, 1, 1, 1)
    inversion = pf.invert(net, noise, 4)
    sizes = {rows for _, _, rows in net.calls.all}
    alone = whole(lambda: pf.invert(net, noise, 4))
    assert len(sizes) > 2 and inversion.calls == alone.calls and bool(inversion.converged.all())
    assert torch.allclose(inversion.noise, alone.noise, rtol=0.0, atol=1e-5)


def test_what_is_counted_and_what_is_asked_between_calls():
    """`on_batch` once a batch, `check` in the caller's thread alone."""
    callers, counted = [], []
    noise = torch.randn(256, *SHAPE)
    inversion = pf.invert(
        Net(), noise, 2, max_iterations=2, on_batch=counted.append, check=lambda: callers.append(threading.get_ident())
    )
    assert set(callers) == {threading.get_ident()} and counted == [256]
    assert inversion.calls == whole(lambda: pf.invert(Net(), noise, 2, max_iterations=2)).calls
    roll(Net(), 512, on_batch=counted.append)
    assert counted == [256, 768, 768]


class Unsaid(Net):
    thread_safe = False


class Stateful(nn.Linear):
    """Of another file than a network that says so."""


Stateful.__module__ = "somewhere_else"


def hooked():
    net = Net()
    net.layers[0].register_forward_hook(lambda *_: None)
    return net


def pre_hooked():
    net = Net()
    net.register_forward_pre_hook(lambda *_: None)
    return net


def patched():
    net = Net()
    net.layers[1].forward = torch.sigmoid
    return net


def replaced():
    net = Net()
    net.layers[2] = Stateful(1024, 64)
    return net


@pytest.mark.parametrize("make", [Unsaid, hooked, pre_hooked, patched, replaced])
def test_no_parts_where_threads_might_meet(make):
    net = make()
    roll(net)
    assert net.calls.rows() == [256] * 3
    roll(Net(), tuned=net, cut=0.4)
    assert net.calls.rows() == [256] * 5
    assert not is_thread_safe(pf.guided(net, 2.0, torch.zeros(1)))


def test_functions_and_compiled_modules_are_called_by_one_thread():
    net = Net()
    assert is_thread_safe(net) and is_thread_safe(pf.guided(net, 2.0, torch.zeros(1)))
    assert not is_thread_safe(torch.compile(net))
    assert not is_thread_safe(lambda x, t: net(x, t) + 0.0)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_thread_safe(net)
    finally:
        handle.remove()


def test_no_parts_in_a_mode_of_the_callers_thread():
    """New threads know nothing of it."""
    net = Net()
    modes = [
        torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.device("cpu"),
        torch.autograd.profiler.profile(),
    ]  # fmt: skip
    for mode in modes:
        net.calls.all.clear()
        with mode:
            roll(net)
        assert net.calls.rows() == [256] * 3, mode
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    team, seen = Team(1e12, CPU, 1e10), []
    with fake:
        team.run(slice(0, 256), seen.append)
    assert seen == [slice(0, 256)]


def test_a_part_knows_the_callers_context():
    contexts = []
    SHARED.set("something")
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            Team(1e12, CPU, 1e10).run(
                slice(3, 256), lambda rows: contexts.append((rows.start, torch.is_grad_enabled(), SHARED.get()))
            )
    assert sorted(contexts) == sorted((start, on, "something") for start in (3, 129) for on in (False, True))


@pytest.mark.parametrize("place", [0, 1])
def test_what_fails_in_a_part_ends_all(place):
    """The error itself, and the others go on for a step at most."""
    entered = threading.Barrier(2)

    class Failing(Net):
        def forward(self, x, t):
            out = super().forward(x, t)
            if len(self.calls.all) < 3:
                entered.wait()
            if int(x[0, 0, 0, 0] * 0) == 0 and (threading.get_ident() == caller) == (place == 0):
                raise ValueError("here")
            failed.wait(0.2)
            return out

    caller, failed = threading.get_ident(), threading.Event()
    net = Failing()
    with pytest.raises(ValueError, match=r"^here$"):
        pf.rollout(net, SCHEDULE, shape=SHAPE, n=256, steps=50)
    assert len(net.calls.all) <= 3
    assert torch.get_num_threads() == 2
    assert len(roll(Net()).x_0) == 256


def test_a_wrong_shape_is_told_as_ever():
    class Wrong(Net):
        def forward(self, x, t):
            return super().forward(x, t)[:, :, 1:]

    with pytest.raises(InputError, match=r"the model returned \(128, 1, 7, 8\)"):
        roll(Wrong())


@pytest.mark.parametrize("waits", [False, True])
def test_ctrl_c_ends_all(waits):
    """In the caller's own part, or while it waits for another one that still has 50 steps to go."""
    begun, interrupted = threading.Barrier(2), threading.Event()

    def interrupt(*_):
        interrupted.set()
        raise KeyboardInterrupt

    class Slow(Net):
        def forward(self, x, t):
            out = super().forward(x, t)
            own = threading.get_ident() == caller
            if len(self.calls.all) < 3:
                begun.wait()
            if own and not waits:
                raise KeyboardInterrupt
            if not own and waits:
                while sum(thread == caller for thread, _, _ in self.calls.all) < 50:
                    time.sleep(0.01)
                if not interrupted.is_set():
                    os.kill(os.getpid(), signal.SIGINT)
                    interrupted.wait()
                time.sleep(0.02)
            return out

    caller, net = threading.get_ident(), Slow()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            pf.rollout(net, SCHEDULE, shape=SHAPE, n=256, steps=50)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(net.calls.all) < 100
    assert torch.get_num_threads() == 2


def test_a_team_goes_on_after_a_failure():
    team = Team(1e12, CPU, 1e10)

    def fail(rows):
        raise ValueError(rows.start)

    with pytest.raises(ValueError, match=r"^0$"):
        team.run(slice(0, 256), fail)
    assert team.run(slice(0, 256), lambda rows: team.check() or rows) == [slice(0, 128), slice(128, 256)]


def test_number_of_parts():
    """As many as the interpreter bears, at most the caller's threads."""
    assert number_of_parts(99 * LEAST_SHARED, 64) == 1
    assert number_of_parts(100 * LEAST_SHARED, 64) == 2
    assert number_of_parts(1e4 * LEAST_SHARED, 64) == 20
    assert number_of_parts(1e4 * LEAST_SHARED, 2) == 2
    assert number_of_parts(1e4 * LEAST_SHARED, 1) == 1


def test_threads_that_are_left_are_shared_out():
    shares = []
    torch.set_num_threads(5)
    team = Team(1e12, CPU, 100.0 * LEAST_SHARED / 256)
    team.run(slice(0, 256), lambda rows: shares.append((rows, torch.get_num_threads())))
    assert sorted(shares, key=lambda share: share[0].start) == [(slice(0, 128), 2), (slice(128, 256), 2)]
    assert torch.get_num_threads() == 5


def test_new_threads_keep_their_number():
    roll(Net())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_elsewhere_than_on_a_cpu():
    seen = []
    Team(1e12, torch.device("cuda"), 1e10).run(slice(0, 256), seen.append)
    assert seen == [slice(0, 256)]
    assert team_of(Net(), 256, SHAPE, CPU)._work_of_row is not None
