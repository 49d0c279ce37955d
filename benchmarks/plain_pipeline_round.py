"""A round of P-GRAFT on a pipeline with a LoRA, as one writes it with diffusers, peft and torch."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from pgraft_fast_benchmarks.plain_round import Clocked


@dataclass
class PlainPipelineRound(Clocked):
    """pipe: Stable Diffusion's, whose UNet has a LoRA that is on. Of each prompt `candidates` are drawn, the best kept.

    Sampling is guided, training is not. compiled: the UNet by torch.compile in sampling, where all but a few percent of
    its calls are.
    """

    pipe: Any
    prompts: list[str]
    reward: Callable[[Tensor], Tensor]
    candidates: int
    steps: int
    cut: float
    guidance: float
    sample_batch: int
    train_steps: int
    train_batch: int
    learning_rate: float
    compiled: bool = False
    seconds: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        import diffusers

        self.unet = self.pipe.unet
        self.device = self.unet.device
        self._called = torch.compile(self.unet, dynamic=False) if self.compiled else self.unet
        self.scheduler = diffusers.DDPMScheduler.from_config(self.pipe.scheduler.config, clip_sample=False)
        self.lora = [weight for name, weight in self.unet.named_parameters() if "lora_" in name]
        self.optimizer = torch.optim.AdamW(self.lora, self.learning_rate, weight_decay=0.0)
        with torch.no_grad():
            texts, null = self.pipe.encode_prompt(self.prompts, self.device, 1, True)
        self.texts, self.null = texts.repeat_interleave(self.candidates, 0), null[:1]

    def run(self) -> Tensor:
        """Rewards (groups, candidates)."""
        self.seconds.append({})
        began = time.perf_counter()
        x_0, x_cut, t_cut = self._sample()
        began = self._spent("sample", began)
        rewards = self.reward(x_0).view(-1, self.candidates)
        began = self._spent("score", began)
        best = rewards.argmax(dim=1) + self.candidates * torch.arange(len(rewards), device=rewards.device)
        began = self._spent("accept", began)
        with torch.enable_grad():
            self._train(x_cut[best], self.texts[best], t_cut)
        self._spent("train", began)
        return rewards

    @torch.no_grad()
    def _sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Final states, those at the cut, and the timestep there."""
        config, finals, kept = self.unet.config, [], []
        self.scheduler.set_timesteps(self.steps, device=self.device)
        timesteps = self.scheduler.timesteps
        handover = round((1.0 - self.cut) * self.steps)
        for texts in self.texts.split(self.sample_batch):
            shape = (len(texts), config.in_channels, config.sample_size, config.sample_size)
            x = torch.randn(shape, device=self.device, dtype=texts.dtype)
            both = torch.cat((self.null.expand_as(texts), texts))
            self.unet.enable_adapters()
            for number, t in enumerate(timesteps):
                if number == handover:
                    kept.append(x)
                    self.unet.disable_adapters()
                out = self._called(torch.cat((x, x)), t, encoder_hidden_states=both, return_dict=False)[0]
                plain, prompted = out.chunk(2)
                x = self.scheduler.step(plain + self.guidance * (prompted - plain), t, x, return_dict=False)[0]
            finals.append(x)
        self.unet.enable_adapters()
        return torch.cat(finals), torch.cat(kept), timesteps[handover]

    def _train(self, x_cut: Tensor, texts: Tensor, t_cut: Tensor) -> None:
        """Noise at levels above the cut, predicted from the states there."""
        cumulative = self.scheduler.alphas_cumprod.to(self.device)
        for _ in range(self.train_steps):
            rows = torch.randint(len(x_cut), (self.train_batch,), device=self.device)
            t = torch.randint(int(t_cut) + 1, len(cumulative), (self.train_batch,), device=self.device)
            a = (cumulative[t] / cumulative[int(t_cut)]).sqrt().view(-1, 1, 1, 1)
            noise = torch.randn_like(x_cut[rows], dtype=torch.float32)
            x = a * x_cut[rows].float() + (1.0 - a**2).sqrt() * noise
            # The noise added since the cut, as the target of what is predicted in all.
            share = ((1.0 - a**2) / (1.0 - cumulative[t].view(-1, 1, 1, 1))).sqrt()
            out = self.unet(x.to(x_cut.dtype), t, encoder_hidden_states=texts[rows], return_dict=False)[0]
            loss = mse_loss(share * out.float(), noise)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.lora, 1.0)
            self.optimizer.step()


def with_lora(pipe: Any, rank: int) -> Any:
    """The pipeline with a copy of its UNet, which has a LoRA on its attention, in float32, as for training."""
    from peft import LoraConfig

    unet = copy.deepcopy(pipe.unet).requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian"))
    for name, weight in unet.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    parts = {**pipe.components, "unet": unet}
    return type(pipe)(**parts, requires_safety_checker=False)
