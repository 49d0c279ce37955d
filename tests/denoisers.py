"""A tiny pipeline's denoiser as a model of prompt numbers."""

import torch

from pgraft_fast.text_to_image import Denoiser, PromptTable, kind_of

TEXTS = ("a red cube", "two cats")
NAMES = ("sd", "sdxl", "sd3", "flux")


def table_of(pipe, kind, null=""):
    return PromptTable(lambda texts: kind.encode(pipe, texts, 64), TEXTS, null, torch.device("cpu"), torch.float32)


def denoiser(pipe, guidance=1.0, size=16):
    kind = kind_of(pipe)
    table = table_of(pipe, kind)
    table.prepare(torch.arange(2))
    return Denoiser(kind.net(pipe), kind, table, kind.constants(pipe, size, size), guidance=guidance)
