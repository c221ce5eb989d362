"""AdamATan2 (Everett et al. 2024): Adam whose quotient is an arc tangent, so that there is no epsilon to tune.

The formula is that of the `adam-atan2` CUDA extension, which trained the published models: the first moment is
bias-corrected outside the arc tangent. It differs from the paper's in the first steps (docs/fidelity.md).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class AdamATan2(torch.optim.Optimizer):
    """`p = p (1 - lr wd) - lr / (1 - b1^t) * atan2(m, sqrt(v / (1 - b2^t)))`, t counting from 1.

    `step` is `prepare`, which counts the step and sends its three factors to the device, then `apply`, which works on
    the device alone: a CUDA graph holds `apply` and is replayed after `prepare`.
    """

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
        self._work: list[tuple[list[nn.Parameter], tuple[float, float], Tensor]] = []  # parameters, betas, factors
        self._factors: list[Tensor] = []  # at the same address in every step
        self._update = _update

    def step(self, closure=None) -> None:
        assert closure is None
        self.prepare()
        self.apply()

    @torch.no_grad()
    def prepare(self) -> None:
        """Count the step of the parameters that have a gradient now (mostly all: one set of factors), and send it."""
        self._work = []
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for step, params in self._by_step(group["params"]).items():
                values = (1 - lr * group["weight_decay"], (1 - beta2**step) ** 0.5, -lr / (1 - beta1**step))
                factors = self._place(len(self._work), params[0])
                send_(factors, values)
                self._work.append((params, (beta1, beta2), factors))

    @torch.no_grad()
    def apply(self) -> None:
        """Apply the prepared update, with the gradients as they are now."""
        for params, betas, factors in self._work:
            grads = [p.grad for p in params]
            m, v = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
            self._update(params, grads, m, v, betas, factors)

    def _place(self, number: int, like: Tensor) -> Tensor:
        if number == len(self._factors):
            self._factors.append(like.new_empty(3))
        return self._factors[number]

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

    def compile(self) -> None:
        """Let the compiler make one kernel of an update's passes over the weights."""
        self._update = torch.compile(_update, dynamic=False)


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    betas: tuple[float, float],
    factors: Tensor,
) -> None:
    """The update in place, with the three factors that `AdamATan2.prepare` sends."""
    (beta1, beta2), (decay, correction, rate) = betas, factors.unbind()
    torch._foreach_mul_(params, decay)
    torch._foreach_lerp_(m, grads, 1 - beta1)
    torch._foreach_lerp_(v, torch._foreach_mul(grads, grads), 1 - beta2)
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, correction)
    angle = [torch.atan2(x, y) for x, y in zip(m, root, strict=True)]  # there is no foreach form
    torch._foreach_mul_(angle, rate)
    torch._foreach_add_(params, angle)


def adam_atan2(params: Iterable[nn.Parameter], graphed: bool = False, **options) -> torch.optim.Optimizer:
    """The CUDA extension if it imports and the parameters are on CUDA, else `AdamATan2`, whose options both take.

    `graphed`: for use in a CUDA graph, which cannot hold the extension's counting; then it is `AdamATan2`.
    """
    params = list(params)
    if not graphed and params and all(p.is_cuda for p in params):
        try:
            from adam_atan2 import AdamATan2 as Extension
        except ImportError:
            log.info("optimizer: AdamATan2 (torch)")
        else:
            log.info("optimizer: AdamATan2 (CUDA extension)")
            return Extension(params, **options)
    return AdamATan2(params, **options)


def portable_state(optimizer: torch.optim.Optimizer) -> dict:
    """Its state dict with counts of steps as plain numbers, as `AdamATan2` keeps them; the extension has tensors.

    One of PyTorch's own optimisers has nothing to be exchanged with: its state is as it is.
    """
    saved = optimizer.state_dict()
    if _is_torchs_own(optimizer):
        return saved
    states = {
        number: state | {"step": int(state["step"])} for number, state in saved["state"].items() if "step" in state
    }
    return saved | {"state": saved["state"] | states}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load a state dict of `AdamATan2` or of the extension into either, or one of PyTorch's own into its like.

    The options stay those that the optimiser was made with, whose names are in its `defaults`; PyTorch's own loading
    would take the saved ones. All else that a group holds is state.

    The extension reads its counts through their addresses on the device: they must be tensors there. PyTorch's own
    loading leaves them where they were.
    """
    groups = [
        then | {key: value for key, value in now.items() if key in optimizer.defaults}
        for then, now in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(saved | {"param_groups": groups})
    if _is_torchs_own(optimizer):
        return
    for parameter, state in optimizer.state.items():
        if "step" in state:
            count = int(state["step"])
            is_ours = isinstance(optimizer, AdamATan2)
            state["step"] = count if is_ours else torch.tensor(count, dtype=torch.float32, device=parameter.device)


def _is_torchs_own(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim.")


def send_(place: Tensor, values: Sequence[float]) -> None:
    """Write numbers into `place`, in stream order: the host does not wait for the device."""
    place.copy_(torch.tensor(values, dtype=place.dtype, pin_memory=place.is_cuda), non_blocking=True)
