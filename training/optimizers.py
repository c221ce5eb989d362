"""The optimisers of the weights, by the name that a run's `optimizer` gives; puzzle embeddings have one of their own.

adam_atan2   models/adam_atan2.py, which trained the published models
adamw        PyTorch's AdamW (Loshchilov and Hutter 2019)
muon         PyTorch's Muon (Jordan et al. 2024) for matrices, with AdamW for vectors and convolutions. Its updates are
             scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so that one lr and weight_decay suit both
"""

from collections.abc import Iterable

import torch
from torch import nn

from errors import UserError
from models.adam_atan2 import adam_atan2

OPTIMIZERS = ("adam_atan2", "adamw", "muon")


def check_optimizer(name: str) -> None:
    """Raise `UserError` for an optimiser that this PyTorch does not have."""
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError(f"optimizer=muon needs PyTorch 2.9 or newer, this is {torch.__version__}; use optimizer=adamw")


def weight_optimizers(
    name: str, params: Iterable[nn.Parameter], *, weight_decay: float, betas: tuple[float, float], graphed: bool
) -> list[torch.optim.Optimizer]:
    """The optimisers that together train these parameters; their lr is set before every step.

    `graphed`: for use in a CUDA graph, which only `adam_atan2` can be part of.
    """
    params = list(params)
    if name == "adam_atan2":
        return [adam_atan2(params, graphed, lr=0, weight_decay=weight_decay, betas=betas)]
    assert not graphed
    matrices = [p for p in params if p.ndim == 2 and name == "muon"]
    others = [p for p in params if p.ndim != 2 or name != "muon"]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=0, weight_decay=weight_decay, betas=betas))
    return optimizers
