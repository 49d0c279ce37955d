"""How many threads work takes, how they wait, and that nothing of it stays behind."""

import os
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from torch import nn

import pgraft_fast as pf
from pgraft_fast.finetune import Learner, TrainSettings, train
from pgraft_fast.finetune.kept import Kept
from pgraft_fast.inverse_noise import FitSettings, NoiseCorrector, generate
from pgraft_fast.sampling.recorded import record
from pgraft_fast.threads import LEAST_SHARED, Team, team_of, work_of
from pgraft_fast.waiting import NAMES

CPU = torch.device("cpu")
SCHEDULE = pf.Schedule.cosine()


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A perceptron on states of 4 numbers that notes the threads it finds."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 4))
        self.threads = []

    def forward(self, x, t, condition=None):
        self.threads.append(torch.get_num_threads())
        return self.layers(x)


def roll(model, n=8, **more):
    return pf.rollout(model, SCHEDULE, shape=(4,), n=n, steps=3, **more)


@pytest.mark.parametrize(("width", "n", "threads"), [(8, 8, 1), (8, 256, 1), (4096, 1024, 2)])
def test_a_rollout_takes_what_its_work_is_worth(width, n, threads):
    net = Net(width)
    roll(net, n, batch_size=1024)
    assert set(net.threads) == {threads} and len(net.threads) == 3
    assert torch.get_num_threads() == 2


def test_two_models_on_one_network_take_as_many_threads_as_one():
    """Or a tuned model that equals the reference would draw other bits."""

    class Other(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x, t)

    net = Net(1024)
    rows = int(0.7 * LEAST_SHARED / work_of(net, 1, (4,)))
    roll(net, rows, batch_size=4096, tuned=Other(net), cut=0.5)
    assert set(net.threads) == {1} and len(net.threads) == 3
    roll(Other(net), 2 * rows, batch_size=4096, tuned=Net(8), cut=0.5)
    assert net.threads[3:] == [2]


def test_between_batches_the_callers_threads():
    """What a caller does in `on_batch` is not the library's work."""
    seen = []
    roll(Net(), on_batch=lambda calls: seen.append(torch.get_num_threads()), batch_size=4)
    assert seen == [2, 2]


def test_every_loop():
    """Recording, training, DDPO's model, fitting a field, a flow and its inverse."""
    net, ids = Net(), torch.arange(8)
    record(net, SCHEDULE, shape=(4,), sample_ids=ids, steps=3)
    learner = Learner(net, TrainSettings(steps=2, batch_size=4))
    learner.model.threads = []
    train(learner, Kept(torch.randn(8, 4), ids, None, 0.25), SCHEDULE, parameterization="epsilon", seed=0)
    flow = Net()
    noise = pf.invert(flow, torch.zeros(8, 4), 2, max_iterations=3)
    generate(flow, noise.round_trip.new_zeros(8, 4), 2)
    assert set(net.threads) | set(learner.model.threads) | set(flow.threads) == {1}
    seen = []

    def check():
        seen.append(torch.get_num_threads())

    corrector = NoiseCorrector.fit(
        torch.randn(64, 4), steps=2, settings=FitSettings(steps=3, batch_size=16), check=check
    )
    corrector(torch.randn(4, 4))
    assert seen == [1, 1, 1] and torch.get_num_threads() == 2


def test_callers_number_is_the_limit_and_comes_back():
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        net = Net(4096)
        roll(net, 1024, batch_size=1024)
        assert set(net.threads) == {threads}
        roll(Net())
        assert torch.get_num_threads() == threads


def test_it_comes_back_after_an_exception():
    def model(x, t):
        raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match=r"^1$"):
        roll(model)
    assert torch.get_num_threads() == 2

    def stop(calls):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        roll(Net(), on_batch=stop)
    assert torch.get_num_threads() == 2


def test_one_in_the_other():
    """Small work inside small work, and inside of work that is not."""
    inner, seen = Net(), []

    class Outer(Net):
        def forward(self, x, t):
            roll(inner)
            seen.append(torch.get_num_threads())
            return super().forward(x, t)

    roll(Outer())
    roll(Hidden(Outer()))
    assert set(inner.threads) == {1} and seen == [1, 1, 1, 2, 2, 2]
    assert torch.get_num_threads() == 2


def test_other_threads_keep_theirs():
    """A thread that first asks torch while small work runs, and one that ends its own small work meanwhile."""
    counts = {}

    def other():
        counts["new"] = torch.get_num_threads()
        with Team(0.0, CPU):
            counts["small"] = torch.get_num_threads()
        counts["after"] = torch.get_num_threads()

    with Team(0.0, CPU):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 1
    assert counts == {"new": 2, "small": 1, "after": 2}
    assert torch.get_num_threads() == 2
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert counts["new"] == 2


def test_new_threads_keep_another_number():
    """A thread may have another number than those to come."""
    setting = threading.Thread(target=torch.set_num_threads, args=(3,))
    setting.start()
    setting.join()
    with Team(0.0, CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    counts = []
    asking = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    asking.start()
    asking.join()
    assert counts == [3]


def test_work_elsewhere_is_left_alone():
    with Team(0.0, torch.device("cuda")):
        assert torch.get_num_threads() == 2
    with Team(None, CPU):
        assert torch.get_num_threads() == 2


def test_work_of():
    net = Net(8)
    weights = sum(weight.numel() for weight in net.parameters())
    assert weights == 4 * 8 + 8 + 8 * 4 + 4
    assert work_of(net, 10, (4,)) == 10 * (2 * weights + 250 * 4)
    # Channels and places in any order; a picture uses each weight at each place.
    assert work_of(net, 1, (1, 8, 8)) == work_of(net, 1, (8, 8, 1)) == 2 * weights * 64 + 250 * 64
    assert work_of(lambda x, t: x, 2, (4,)) == 2 * 250 * 4
    assert work_of(lambda x, t: x, 256, (3, 512, 512)) > LEAST_SHARED
    plain = work_of(net, 10, (4,))
    notes = []

    def spied(x, t):
        notes.append(len(x))
        return net(x, t)

    for wrapped in (
        spied,
        lambda x, t: spied(x, t) + 0.0,
        partial(spied, t=0),
        net.forward,
        partial(lambda n, x: n(x), net),
    ):
        assert work_of(wrapped, 10, (4,)) == plain
    assert work_of(pf.guided(net, 2.0, torch.zeros(1)), 10, (4,)) == plain
    assert work_of([net, Net(8)], 10, (4,)) == 10 * (4 * weights + 250 * 4)


class Hidden:
    def __init__(self, net):
        self.net = net

    def __call__(self, x, t):
        return self.net(x, t)


def test_what_is_not_known_takes_all_threads():
    hidden = Hidden(Net())
    assert work_of(hidden, 1, (4,)) is None
    assert work_of(lambda x, t: hidden(x, t) + 0.0, 1, (4,)) is None
    roll(hidden)
    assert set(hidden.net.threads) == {2}


def test_a_team_is_used_again():
    net = Net()
    team = team_of(net, 4, (4,), CPU)
    for _ in range(2):
        with team:
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2


def fresh(code, **given):
    """What a process prints that was started with two threads and, but for `given`, no word on waiting."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"OMP_NUM_THREADS": "2"} | given, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# How often the thread that shares the work went to sleep in 300 operations one behind the other.
SLEEPS = """
import os, re, time, torch
from pathlib import Path
from pgraft_fast import threads
from pgraft_fast.threads import watch
def own():
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}
def sleeps(task):
    status = Path(f"/proc/self/task/{task}/status").read_text()
    return int(re.search(r"(?m)^voluntary_ctxt_switches:\\s+(\\d+)", status)[1])
before = own()
x = torch.zeros(1 << 17)
x.add_(1.0)
worker = max(own() - before)
def count():
    start = sleeps(worker)
    for _ in range(300):
        x.add_(1.0)
    return sleeps(worker) - start
"""
BUSY = """
queue, at_first = iter(range(10**9)), own()
watch._queued = lambda: float(next(queue))
team = threads.Team(None, torch.device("cpu"))
for _ in range(2):
    with team:
        # The watch and the team that it begins.
        while len(own()) < len(at_first) + 1 + os.cpu_count():
            time.sleep(0.01)
        print(count())
    while own() != at_first:
        time.sleep(0.01)
"""


TELL = "from pgraft_fast.waiting import waiting; found = waiting(); print(found['policy'], found['set_by'])"
COUNT = "with threads.Team(None, torch.device('cpu')): print(threading.active_count())\n"
# What a user's process finds that never said how to wait, one after the other.
PARTS = {
    "asleep": SLEEPS + "own_queue = watch._queued\n" + BUSY + "watch._queued = own_queue\n",
    "untouched": "import pgraft_fast.sampling\n" + TELL + "\nprint('GOMP_SPINCOUNT' in os.environ)\n",
    "watched": "import threading\n" + COUNT,
    "queued": (
        "import subprocess, sys\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2)]\n"
        "try:\n"
        "    with threads.Team(None, torch.device('cpu')) as team:\n"
        "        while not team._busy.is_set(): torch.zeros(1000).add_(1.0)\n"
        "finally:\n"
        "    for one in others: one.kill()\n"
        "print('seen')\n"
    ),
    "too late": (
        "from pgraft_fast.waiting import wait_passively; wait_passively()\n"
        + TELL + f"\nsys.stdout.flush()\nsubprocess.run([sys.executable, '-c', {TELL!r}])\n"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """What each part printed."""
    code = "".join(f"print({'|' + name.replace(' ', '_')!r}, flush=True)\n{part}" for name, part in PARTS.items())
    printed, words = {}, []
    for word in fresh(code):
        if word.startswith("|"):
            words = printed[word[1:].replace("_", " ")] = []
        else:
            words.append(word)
    return printed


def test_threads_sleep_while_the_machine_is_busy(plain):
    """Told by the queue for the cores, in a user's process; the threads that bring it about are gone afterwards. On a
    quiet machine next to none sleeps otherwise; on a busy one some find their work waiting, and do not sleep either.
    """
    counts = [int(word) for word in plain["asleep"]]
    assert len(counts) == 2 and min(counts) > 50


def test_a_queue_of_other_processes_is_seen(plain):
    """With more busy processes than cores on one core, a working thread queues."""
    assert plain["queued"] == ["seen"]


@pytest.mark.parametrize("variables", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "100000"}])
def test_a_user_who_said_how_to_wait_is_not_watched(variables, plain):
    assert fresh("import threading, torch\nfrom pgraft_fast import threads\n" + COUNT, **variables) == ["1"]
    assert plain["watched"] == ["2"]


def test_threads_that_wait_passively_from_the_start_are_not_watched():
    """They spin for a short time at most, which on a busy machine costs less than to sleep at each gap."""
    code = "from pgraft_fast.waiting import wait_passively; wait_passively()\n"
    assert fresh(code + "import threading, torch\nfrom pgraft_fast import threads\n" + COUNT) == ["1"]


@pytest.mark.parametrize(
    ("variables", "output"),
    [
        ({}, ["passive", "pgraft-fast"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "user"]),
        ({"OMP_WAIT_POLICY": "passive"}, ["passive", "user"]),
        ({"GOMP_SPINCOUNT": "17"}, ["active", "user"]),
        ({"KMP_BLOCKTIME": "0"}, ["passive", "user"]),
    ],
)
def test_a_users_setting_wins(variables, output):
    code = (
        "import os, sys\nfrom pgraft_fast.waiting import NAMES, wait_passively\nwait_passively()\n"
        "assert 'torch' not in sys.modules\n" + TELL + "\nprint(*(name for name in NAMES if name in os.environ))"
    )
    names = list(variables) or ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]
    assert fresh(code, **variables) == output + names


def test_too_late_for_this_process_is_told(plain):
    """Where torch is loaded, only what is started later waits passively."""
    assert plain["too late"] == ["default", "None", "passive", "pgraft-fast"]


def test_the_library_sets_nothing(plain):
    assert plain["untouched"] == ["default", "None", "False"]


@pytest.mark.parametrize(
    "arguments",
    [["pgraft_fast.cli", "info"], ["pgraft_fast_benchmarks.run", "ops", "--size", "smoke", "--only", "philox_normal"]],
)
def test_commands_wait_passively(arguments, tmp_path):
    """As libgomp itself tells when torch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment | {"OMP_DISPLAY_ENV": "verbose"}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr and "GOMP_SPINCOUNT = '30000'" in done.stderr
