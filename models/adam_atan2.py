"""AdamATan2 (Everett et al. 2024): Adam whose quotient is an arc tangent, so that there is no epsilon to tune.

The formula is that of the `adam-atan2` CUDA extension, which trained the published models: the first moment is
bias-corrected outside the arc tangent. It differs from the paper's in the first steps (docs/fidelity.md).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class AdamATan2(torch.optim.Optimizer):
    """`p = p (1 - lr wd) - lr / (1 - b1^t) * atan2(m, sqrt(v / (1 - b2^t)))`, t counting from 1."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 1e-2,
    ):
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr ({lr}) and weight_decay ({weight_decay}) must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must lie in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None
        for group in self.param_groups:
            for step, params in self._by_step(group["params"]).items():
                self._update(params, step, group["lr"], group["betas"], group["weight_decay"])

    def _by_step(self, params: list[nn.Parameter]) -> dict[int, list[nn.Parameter]]:
        """Count this step, and group the parameters that have a gradient by their number of steps: mostly one group."""
        groups = defaultdict(list)
        for p in params:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["step"] += 1
            groups[state["step"]].append(p)
        return groups

    def _update(
        self, params: list[nn.Parameter], step: int, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        beta1, beta2 = betas
        grads = [p.grad for p in params]
        m: list[Tensor] = [self.state[p]["exp_avg"] for p in params]
        v: list[Tensor] = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_lerp_(v, torch._foreach_mul(grads, grads), 1 - beta2)
        root = torch._foreach_sqrt(v)
        torch._foreach_div_(root, (1 - beta2**step) ** 0.5)
        angle = [torch.atan2(x, y) for x, y in zip(m, root, strict=True)]  # there is no foreach form
        torch._foreach_add_(params, angle, alpha=-lr / (1 - beta1**step))


def adam_atan2(params: Iterable[nn.Parameter], **options) -> torch.optim.Optimizer:
    """The CUDA extension where it imports and the parameters are on CUDA, else `AdamATan2`; options as for it."""
    params = list(params)
    if params and all(p.is_cuda for p in params):
        try:
            from adam_atan2 import AdamATan2 as Extension
        except ImportError:
            log.info("optimizer: AdamATan2 (torch)")
        else:
            log.info("optimizer: AdamATan2 (CUDA extension)")
            return Extension(params, **options)
    return AdamATan2(params, **options)
