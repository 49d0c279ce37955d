"""Rewards in another process: the protocol, every way to break it, and what is left of the processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pgraft_fast.rewards
from pgraft_fast import waiting
from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.rewards import PolicedReward, Policy
from pgraft_fast.rewards.process import CommandReward
from pgraft_fast.rewards.protocol import RewardTimeoutError

SERVE = Path(pgraft_fast.rewards.__file__).with_name("serve.py")
SAMPLES = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 3, 2, 2)
PROMPTS, IDS = ["a", "bb", "ccc"], [40, 41, 42]
# A process that speaks the protocol by itself; `answer` and `size` are at hand where ANSWER stands.
RAW = """
import json, math, os, sys, time
print(json.dumps({"ready": True}), flush=True)
while line := sys.stdin.buffer.readline():
    header = json.loads(line)
    data = sys.stdin.buffer.read(math.prod(header["shape"]))
    answer = {"id": header["id"], "sample_ids": header["sample_ids"], "rewards": [1.0] * header["count"]}
    ANSWER
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """start(text): a reward by a raw process, or by serve.py where the text has a function `score`."""
    rewards = []

    def make(text, **options):
        file = tmp_path / "scorer.py"
        if "def score" in text:
            file.write_text(text)
            command = [sys.executable, str(SERVE), f"{file}:score"]
        else:
            file.write_text(RAW.replace("ANSWER", text))
            command = [sys.executable, str(file)]
        rewards.append(CommandReward(command, **{"name": "mine", "timeout_seconds": 20.0, **options}))
        return rewards[-1]

    yield make
    for reward in rewards:
        pid = reward.pid
        reward.close()
        assert reward.pid is None
        assert pid is None or not _exists(pid)


def test_serve(start, tmp_path):
    reward = start(
        "import http.client, os, sys\n"
        "print('loading')\n"
        "def score(images, prompts):\n"
        "    print('scoring')\n"
        "    sys.stderr.write('noise\\n')\n"
        "    assert images.dtype == 'uint8' and sys.stdin.read() == ''\n"
        "    return images.mean(axis=(1, 2, 3)) + [len(p) for p in prompts]\n",
        log=tmp_path / "log",
    )
    reward.prepare()
    pid = reward.pid
    for _ in range(3):
        assert reward(SAMPLES, PROMPTS, IDS).tolist() == [1.0, 130.0, 258.0]
    assert reward.pid == pid
    assert (tmp_path / "log").read_text().count("scoring") == 3
    reward.close()
    # A closed reward starts anew, and the log goes on.
    assert reward(SAMPLES[:1], ["a"]).tolist() == [1.0]
    assert reward.pid != pid
    assert (tmp_path / "log").read_text().count("scoring") == 4


def test_a_script_of_three_lines(tmp_path):
    """With a copy of serve.py, where this package is not installed."""
    (tmp_path / "serve.py").write_text(SERVE.read_text())
    (tmp_path / "scorer.py").write_text("def score(images, prompts):\n    return [len(p) for p in prompts]\n")
    (tmp_path / "run.py").write_text("from serve import serve\nfrom scorer import score\nserve(score)\n")
    with CommandReward(f"{sys.executable} run.py", folder=tmp_path) as reward:
        assert reward(SAMPLES, PROMPTS).tolist() == [1, 2, 3]
    wrong = CommandReward([sys.executable, str(SERVE)])
    with pytest.raises(RewardError, match=r"its last line was 'usage: serve\.py file.py:function'"):
        wrong.prepare()


def test_samples_that_are_no_pictures(start):
    reward = start("def score(x, prompts):\n    assert x.dtype == '<f4'\n    return x.sum(axis=1)")
    assert reward(torch.tensor([[0.5, 1.0], [2.0, -7.0]]).double(), ["", ""]).tolist() == [1.5, -5.0]


def test_a_batch_larger_than_a_pipe(start):
    reward = start("def score(x, prompts):\n    return x.reshape(len(x), -1).mean(axis=1)")
    samples = torch.randint(0, 256, (8, 3, 256, 256), dtype=torch.uint8)
    rewards = reward(samples / 127.5 - 1, ["x" * 10_000] * 8)
    torch.testing.assert_close(rewards, samples.float().mean(dim=(1, 2, 3)))


def test_another_order_and_nothing(start):
    reward = start("answer['sample_ids'] = [42, 40, 41]; answer['rewards'] = [3, None, float('nan')]")
    rewards = reward(SAMPLES, PROMPTS, IDS)
    assert torch.isnan(rewards).tolist() == [True, True, False]
    assert rewards[2] == 3


@pytest.mark.parametrize("error", ["None", "''", "False", "{}"])
def test_an_error_that_is_none(start, error):
    reward = start(f"answer['error'] = {error}; answer['rewards'] = [1, None, 3]")
    assert torch.isnan(reward(SAMPLES, PROMPTS, IDS)).tolist() == [False, True, False]


BAD = [
    ("answer['rewards'] = [1, 2]", r"gave 2 rewards for 3 sample_ids \(at samples 40 to 42\)"),
    ("answer['rewards'], answer['sample_ids'] = [1, 2], [40, 42]", "did not answer for sample 41; it must answer"),
    ("answer['sample_ids'] = [40, 41, 43]", "did not answer for sample 42, was not asked about sample 43"),
    ("answer['sample_ids'] = [40, 41, 41]", "did not answer for sample 42, repeats sample 41"),
    ("answer['sample_ids'] = ['40', 41, 42]", "the sample id '40', which is no whole number"),
    ("answer['rewards'] = [1, 'good', 2]", "gave 'good', not a number, for sample 41"),
    ("answer['rewards'] = [1, 2, True]", "gave True, not a number, for sample 42"),
    ("answer = {'id': header['id'], 'rewards': [1, 2, 3]}", "without the lists sample_ids and rewards"),
    ("answer = {'id': header['id'], 'error': 'no\\n luck'}", r"raised no luck \(at samples 40 to 42\)"),
    ("answer['id'] = 77", r"answered question 77 instead of 1 \(at samples 40 to 42\)"),
    ("answer = [1, 2, 3]", r"answered '\[1, 2, 3\]', which is not a JSON object"),
    ("print('Scoring 3 images...')", r"answered 'Scoring 3 images...', .* what it prints must go to stderr"),
    ("print('x' * 1_000_000)", "a line of more than 500000 bytes"),
    (
        "sys.exit('weights are gone')",
        r"its process ended with exit code 1 \(at .*\), its last line was 'weights are gone'",
    ),
    ("os._exit(3)", r"its process ended with exit code 3 \(at samples 40 to 42\)$"),
    ("os.kill(os.getpid(), 9)", r"its process was ended by signal 9 \(out of memory\?\)"),
    ("os.close(1); time.sleep(60)", "its process closed its stdout"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_bad_answers(text, message, start, monkeypatch):
    monkeypatch.setattr("pgraft_fast.rewards.process.MAX_ANSWER_BYTES", 500_000)
    reward = start(f"if header['id'] == 1 or header['sample_ids'] == [1]: {text}" if ";" not in text else text)
    reward.prepare()
    pid = reward.pid
    with pytest.raises(RewardError, match=message) as caught:
        reward(SAMPLES, PROMPTS, IDS)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("reward 'mine'")
    if ";" not in text:
        # The next batch is answered, by a new process where the old one could not be trusted.
        assert reward(SAMPLES, PROMPTS, IDS).tolist() == [1.0] * 3
    if reward.pid != pid:
        assert not _exists(pid)


@pytest.mark.parametrize(
    "text",
    ["[1.0, None, x.mean()]", "np.array([1, None, 3], object)", "(y for y in (1, np.nan, True))", "[1, 10**400, 3]"],
)
def test_none_for_a_sample(start, text):
    reward = start(f"import numpy as np\ndef score(x, prompts):\n    return {text}")
    assert torch.isnan(reward(SAMPLES, PROMPTS, IDS)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("'123'", "the reward returned str, not numbers"),
        ("{0: 1.0, 1: 2.0, 2: 3.0}", "the reward returned dict, not numbers"),
        ("{1.0, 2.0, 3.0}", "the reward returned set, not numbers"),
        ("None", "the reward returned NoneType, not numbers"),
        ("[1, '2', 3]", "the reward returned '2' for a sample, not a number"),
        ("[1, [2], 3]", "float"),
    ],
)
def test_what_is_not_numbers(start, text, message):
    """What can be iterated over is not thereby numbers."""
    reward = start(f"def score(x, prompts):\n    return {text}")
    with pytest.raises(RewardError, match=rf"reward 'mine' raised TypeError: {message}.* \(at samples 40 to 42\)"):
        reward(SAMPLES, PROMPTS, IDS)


def test_exceptions_are_answers(start):
    reward = start("def score(x, prompts):\n    raise KeyError(prompts[0])")
    reward.prepare()
    pid = reward.pid
    with pytest.raises(RewardError, match=r"reward 'mine' raised KeyError: 'a' \(at samples 40 to 42\)"):
        reward(SAMPLES, PROMPTS, IDS)
    assert reward.pid == pid


def test_hang(start, tmp_path):
    """It is ended in time, with what it started, and the next batch is answered by a new process."""
    reward = start(
        "import os, subprocess, sys, time\n"
        f"flag = {str(tmp_path / 'flag')!r}\n"
        "def score(x, prompts):\n"
        "    if not os.path.exists(flag):\n"
        "        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "        open(flag, 'w').write(str(child.pid))\n"
        "        time.sleep(600)\n"
        "    return [1.0] * len(x)\n",
        timeout_seconds=2.0,
    )
    reward.prepare()
    pid = reward.pid
    message = r"reward 'mine' did not answer within 2 s \(at samples 40 to 42\); its process was ended"
    with pytest.raises(RewardTimeoutError, match=message):
        reward(SAMPLES, PROMPTS, IDS)
    assert not _exists(pid)
    assert _gone(int((tmp_path / "flag").read_text()))
    assert reward(SAMPLES, PROMPTS, IDS).tolist() == [1.0] * 3


def test_a_process_that_does_not_read(start):
    text = "import time\nprint('{\"ready\": true}', flush=True)\ntime.sleep(60)\ndef score(): pass"
    reward = start(text, timeout_seconds=0.3)
    reward.command = [sys.executable, reward.command[2].removesuffix(":score")]
    with pytest.raises(RewardTimeoutError, match=r"within 0.3 s"):
        reward(torch.zeros(4, 3, 200, 200), [""] * 4)


def test_start(start):
    """A slow start is not part of the time-out of a batch; one that is too slow, or fails, is said."""
    slow = start("import time\ntime.sleep(2.2)\ndef score(x, prompts):\n    return [1.0] * len(x)", timeout_seconds=2.0)
    assert slow(SAMPLES, PROMPTS, IDS).tolist() == [1.0] * 3
    slow.close()
    slow.start_seconds = 0.3
    with pytest.raises(RewardTimeoutError, match=r"did not answer within 0.3 s \(before it was ready\)"):
        slow.prepare()
    broken = start("import nothing_of_this_name\ndef score(): pass")
    with pytest.raises(RewardError, match=r"ended with exit code 1 \(before it was ready\), .*No module named"):
        broken.prepare()
    with pytest.raises(RewardError, match="'no/such/program' cannot be started"):
        CommandReward("no/such/program --quick").prepare()
    for command in ("", [], "echo 'open"):
        with pytest.raises(InputError, match="command = "):
            CommandReward(command)


BY_REWARD = """
import os, sys, torch
from pgraft_fast.rewards import PolicedReward, Policy
from pgraft_fast.rewards.process import CommandReward
reward = CommandReward([sys.executable, SERVE, "scorer.py:score"])
reward(torch.zeros(1, 3, 2, 2), [""])
print(reward.pid, flush=True)
"""
BY_CHILD = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("child", os.path.join(os.path.dirname(SERVE), "child.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
child = module.Child([sys.executable, SERVE, "scorer.py:score"])
child.exchange((), 20.0, 1000)
print(child.pid, flush=True)
"""


@pytest.mark.parametrize(
    "text", [BY_REWARD + "raise KeyboardInterrupt", BY_CHILD + "sys.exit(0)", BY_CHILD + "os.kill(os.getpid(), 9)"]
)
def test_nothing_is_left(text, tmp_path):
    """After Ctrl-C, an ordinary exit, and a kill of the run, nothing of the reward runs on."""
    (tmp_path / "scorer.py").write_text("def score(x, prompts):\n    return [1.0] * len(x)\n")
    (tmp_path / "run.py").write_text(text.replace("SERVE", repr(str(SERVE))))
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert _gone(int(done.stdout)), done.stderr


def test_its_threads_wait_passively(start, monkeypatch):
    """Also in a process whose own do not."""
    for name in waiting.NAMES:
        monkeypatch.delenv(name, raising=False)
    text = "import os\ndef score(x, prompts):\n    return [float(os.environ.get('GOMP_SPINCOUNT', -1))] * len(x)\n"
    assert start(text)(SAMPLES, PROMPTS, IDS).tolist() == [30000.0] * 3
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert start(text)(SAMPLES, PROMPTS, IDS).tolist() == [7.0] * 3


def _exists(pid):
    """Zombies included."""
    return Path(f"/proc/{pid}").exists()


def _gone(pid):
    """Whether a process ends soon; one that is dead but not yet fetched by its new parent is gone."""
    for _ in range(1500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    os.kill(pid, 9)
    return False


def test_a_process_that_runs_out_of_memory_is_asked_for_fewer(tmp_path):
    """What it says of itself counts, as of a reward in this process."""
    (tmp_path / "scorer.py").write_text(
        "def score(images, prompts):\n"
        "    if len(images) > 2:\n"
        "        bytearray(len(images) << 58)\n"
        "    return [float(len(images))] * len(images)\n"
    )
    command = [sys.executable, str(SERVE), str(tmp_path / "scorer.py:score")]
    with PolicedReward(CommandReward(command, name="own"), Policy("stop"), name="own") as policed:
        assert policed(torch.zeros(5, 3, 2, 2), [""] * 5).tolist() == [2.0, 2.0, 2.0, 2.0, 1.0]
        assert policed.batch_size == 2
