"""Rewards from a config: every kind, weights, what is missing, keys that are wrong."""

import sys
import tomllib
from pathlib import Path

import pytest
import torch

import pgraft_fast.rewards
from pgraft_fast.commands.config import checked
from pgraft_fast.commands.reward_config import RewardSettings, build_reward
from pgraft_fast.errors import InputError, RewardError
from pgraft_fast.finetune.settings import Settings
from pgraft_fast.rewards import Policy, score, stroke_mass, symmetry

SAMPLES = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 8, 8)
PROMPTS, IDS = ["a", "bb", "ccc", "dddd"], torch.arange(40, 44)


class Config(Settings):
    rewards: list[RewardSettings]
    policy: Policy = Policy()


def read(text):
    return checked(Config, tomllib.loads(text), "run.toml")


def build(text, **options):
    config = read(text)
    return build_reward(config.rewards, config.policy, **options)


def test_several(tmp_path):
    (tmp_path / "mine.py").write_text("def length(x, prompts):\n    return [float(len(p)) for p in prompts]\n")
    (tmp_path / "scorer.py").write_text("def score(images, prompts):\n    return images[:, 0, 0, 0] / 255\n")
    serve = Path(pgraft_fast.rewards.__file__).with_name("serve.py")
    text = f"""
        [[rewards]]
        kind = "callable"
        function = "mine.py:length"
        [[rewards]]
        kind = "command"
        command = ["{sys.executable}", "{serve}", "scorer.py:score"]
        weight = -2.0
        batch_size = 3
        [[rewards]]
        kind = "task"
        name = "stroke_mass"
        weight = 0.5
        [[rewards]]
        kind = "jpeg_compressibility"
        [[rewards]]
        kind = "jpeg_size"
        [policy]
        on_failure = "drop"
        max_dropped_share = 0.25
    """
    tasks = {"stroke_mass": stroke_mass, "symmetry": symmetry}
    with build(text, task_rewards=tasks, folder=tmp_path, logs=tmp_path / "logs") as reward:
        assert reward.name == "length + -2 command + 0.5 stroke_mass + jpeg_compressibility + jpeg_size"
        assert reward.max_invalid_share == 0.25
        rewards = score(reward, SAMPLES, PROMPTS, IDS)
    levels = ((torch.linspace(-1, 1, 4) + 1) * 127.5).round() / 255
    # The sizes of JPEG files take each other away.
    torch.testing.assert_close(rewards, torch.tensor([1.0, 2.0, 3.0, 4.0]) - 2 * levels + 0.5 * stroke_mass(SAMPLES))
    assert (tmp_path / "logs" / "command.log").exists()


def test_names_are_unique():
    text = '[[rewards]]\nkind = "jpeg_size"\n' * 3
    assert build(text).name == "jpeg_size + jpeg_size_2 + jpeg_size_3"


def test_order_is_checked(tmp_path):
    (tmp_path / "mine.py").write_text("def turned(x):\n    return x.flatten(1).mean(1).flip(0)\n")
    reward = build('[[rewards]]\nkind = "callable"\nfunction = "mine.py:turned"', folder=tmp_path)
    with pytest.raises(RewardError, match="reward 'turned' answers in another order than it is asked"):
        score(reward, SAMPLES, PROMPTS, IDS)


@pytest.mark.parametrize("kind", ["clip_score", "pick_score", "vqa_score", "aesthetic"])
def test_models(kind, tmp_path):
    """What is there is not loaded before it is used; what is not is said at once."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "layers.pth"):
        (folder / name).touch()
    more = 'clip = "model"\nweights = "model/layers.pth"' if kind == "aesthetic" else 'model = "model"'
    text = f'[[rewards]]\nkind = "{kind}"\ndtype = "bf16"\n{more}\n'
    reward = build(text, folder=tmp_path, device="cpu")
    assert reward.name == kind
    with pytest.raises(RewardError, match=f"^reward '{kind}': .* cannot be loaded as"):
        score(reward, SAMPLES, PROMPTS, IDS)
    if kind != "aesthetic":
        (folder / "tokenizer.json").unlink()
        with pytest.raises(
            InputError, match=r"^rewards.0.model = 'model': the folder has no tokenizer.json; download "
        ):
            build(text, folder=tmp_path)


HUB = {
    'kind = "clip_score"\nmodel = "m"': ("model = 'm'", "openai/clip-vit-large-patch14 to m"),
    'kind = "pick_score"\nmodel = "m/n"': (
        "model = 'm/n'",
        "yuvalkirstain/PickScore_v1, and the tokenizer of .* to m/n",
    ),
    'kind = "vqa_score"\nmodel = "m"': ("model = 'm'", "Salesforce/instructblip-flan-t5-xl to m"),
    'kind = "aesthetic"\nclip = "m"\nweights = "w.pth"': ("clip = 'm'", "openai/clip-vit-large-patch14 to m"),
}


@pytest.mark.parametrize("table", HUB)
def test_missing_weights(table):
    key, hub = HUB[table]
    text = f'[[rewards]]\nkind = "jpeg_size"\n[[rewards]]\n{table}'
    with pytest.raises(InputError, match=f"^rewards.1.{key}: there is no such folder; download {hub}$") as caught:
        build(text)
    assert "\n" not in str(caught.value)


def test_missing_layers(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    text = f'[[rewards]]\nkind = "aesthetic"\nclip = "{tmp_path}"\nweights = "w.pth"'
    with pytest.raises(InputError, match=r"^rewards.0.weights = 'w.pth': there is no such file; download sac\+logos"):
        build(text)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('kind = "http"\nurl = "file:///x"', "rewards.0.url = 'file:///x': must begin with http"),
        ('kind = "command"\ncommand = ""', "rewards.0.command = '': names no program"),
        ('kind = "task"\nname = "symetry"',
         "rewards.0.name = 'symetry': the task's rewards are symmetry; did you mean symmetry"),
        ('kind = "callable"\nfunction = "mine.py"', "expected file.py:function"),
        ('kind = "clip"', "rewards.0.kind = 'clip': input should be 'clip_score' or"),
        ('weight = 1.0', "rewards.0 = .*unable to extract tag using discriminator 'kind'"),
        ('kind = "jpeg_size"\nwieght = 1.0', "rewards.0.jpeg_size.wieght is unknown"),
        ('kind = "jpeg_size"\nweight = nan', "rewards.0.jpeg_size.weight = nan: input should be a finite number"),
        ('kind = "jpeg_size"\nbatch_size = 0', "rewards.0.jpeg_size.batch_size = 0: input should be"),
        ('kind = "clip_score"\nmodel = "m"\ndtype = "fp8"', "rewards.0.clip_score.dtype = 'fp8'"),
        ('kind = "clip_score"', "rewards.0.clip_score.model is missing"),
        ('kind = "jpeg_size"\n[policy]\nretries = -1', "policy.retries = -1"),
        ('kind = "jpeg_size"\n[policy]\non_failure = "skip"', "policy.on_failure = 'skip'"),
        ('kind = "jpeg_size"\n[policy]\nretires = 1', r"policy.retires is unknown; did you mean policy.retries\?"),
    ],
)  # fmt: skip
def test_what_is_wrong(table, message):
    with pytest.raises((InputError, RewardError), match=message) as caught:
        build(f"[[rewards]]\n{table}", task_rewards={"symmetry": symmetry})
    assert "\n" not in str(caught.value)


def test_question_must_hold_the_prompt(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"^rewards.0.question = 'good\?'"):
        build(f'[[rewards]]\nkind = "vqa_score"\nmodel = "{tmp_path}"\nquestion = "good?"')


def test_no_rewards():
    with pytest.raises(InputError, match="rewards is empty"):
        build("rewards = []")


URL = "http://me:hunter2@127.0.0.1:1/score?token=0123456789"


def test_secrets_of_a_url_are_not_saved(monkeypatch):
    """Nor told: not in the config that a run keeps, and not where a config is wrong."""
    config = read(f'[[rewards]]\nkind = "http"\nurl = "{URL}"\n')
    assert config.rewards[0].url == URL
    for text in (repr(config), str(config.model_dump()), config.model_dump_json()):
        assert "hunter2" not in text and "0123456789" not in text
    saved = config.model_dump()["rewards"][0]["url"]
    assert saved == "http://***@127.0.0.1:1/score?token=***"
    for wrong in (f'kind = "htp"\nurl = "{URL}"', f'kind = "http"\nurl = ["{URL}"]', f'url = "{URL}"'):
        with pytest.raises(InputError) as caught:
            read(f"[[rewards]]\n{wrong}\n")
        assert "hunter2" not in str(caught.value) and "0123456789" not in str(caught.value)
    # What was saved can be read again; asking takes the secrets, which a variable may hold.
    with (
        build(f'[[rewards]]\nkind = "http"\nurl = "{saved}"\n') as reward,
        pytest.raises(RewardError, match=r"token=\*\*\* was saved without its secrets; name an environment variable"),
    ):
        reward(SAMPLES, PROMPTS, IDS.tolist())
    monkeypatch.setenv("PASSWORD", "hunter2")
    text = '[[rewards]]\nkind = "http"\nurl = "http://me:${PASSWORD}@127.0.0.1:1"\n[policy]\nretries = 0\n'
    assert read(text).model_dump()["rewards"][0]["url"] == "http://me:${PASSWORD}@127.0.0.1:1"
    with build(text) as reward, pytest.raises(RewardError, match=r"http://\*\*\*@127.0.0.1:1 cannot be reached"):
        reward(SAMPLES, PROMPTS, IDS.tolist())
    monkeypatch.delenv("PASSWORD")
    with pytest.raises(InputError, match=r"rewards.0.url = .*: there is no environment variable PASSWORD; set it"):
        build(text)
