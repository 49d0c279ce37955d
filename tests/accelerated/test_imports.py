"""What is loaded, and when: each case in a fresh interpreter."""

import json
import subprocess
import sys

OURS = """
import json, sys
def loaded(*names):
    return sorted(name for name in names if name in sys.modules)
"""


def run(code):
    """The last line that the code prints, read as JSON."""
    done = subprocess.run([sys.executable, "-c", OURS + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_and_its_names_need_no_diffusers():
    """Nobody asks for it but those who do what needs it, and where it is missing they say so."""
    output = run("""
asked = []
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffusers":
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import pgraft_fast
first = loaded("diffusers", "transformers", "peft", "torch")
from pgraft_fast import PGraftCallback, accelerate, restore
from pgraft_fast.pipelines import accelerate as also
assert also is accelerate is pgraft_fast.accelerate and restore is pgraft_fast.restore
PGraftCallback(0.2), pgraft_fast.PGraftCallback(cut_logsnr=0.0)
try:
    accelerate(object())
except pgraft_fast.errors.InputError as error:
    refused = str(error)
second = loaded("diffusers", "transformers", "peft", "triton", "xformers")
assert asked == []
try:
    import pgraft_fast.schedulers
except ModuleNotFoundError as error:
    print(json.dumps([first, second, refused, str(error)]))
""")
    assert output == [
        [], [], "accelerate needs a diffusers pipeline with a scheduler, got object",
        "pgraft_fast.schedulers needs diffusers: pip install 'pgraft-fast[diffusers]'",
    ]  # fmt: skip


def test_accelerate_loads_no_other_libraries():
    output = run("""
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
blocks = dict(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
unet = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
pipe = DDIMPipeline(unet, DDIMScheduler())
pipe.set_progress_bar_config(disable=True)
pipe(num_inference_steps=2, output_type="np")
before = set(sys.modules)
from pgraft_fast import accelerate
for attention in ("keep", "auto"):
    accelerate(pipe, attention=attention)
    for _ in range(2):
        pipe(num_inference_steps=2, output_type="np")
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new & {"transformers", "xformers", "triton", "peft", "accelerate", "matplotlib", "sklearn"})))
""")
    assert output == []
