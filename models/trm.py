"""The Tiny Recursive Model, and the Equilibrium Reasoner as options of it.

Jolicoeur-Martineau 2025, "Less is More: Recursive Reasoning with Tiny Networks" (arXiv 2510.04871). Read it from the
top: one small network updates both states. In a reasoning step, H_cycles times: L_cycles updates of the latent state
z_L, each from z_L + (z_H + x), then one of the answer z_H, from z_H + z_L. Only the last of these rounds carries
gradient, but all of it does. There is no Q(continue): a sequence halts where Q(halt) > 0.

EqR (arXiv 2605.21488) is the same with random starts (`state_init: random`), damped updates and noise:
z ← (1 - damping) z + damping f(z + injection) + noise ε. Shapes: B sequences, S tokens, P positions before them, which
hold the puzzle's embedding, D hidden size.
"""

import importlib
import logging
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from errors import first_line
from models.act import ACTModel, DataShape
from models.layers import HALF, ReasoningModule, SwiGLU, rms_norm, trunc_normal, trunc_normal_init_
from models.token_network import TokenConfig, TokenNetwork

log = logging.getLogger(__name__)
MOST_POSITIONS, CHANNELS = 128, 64  # of models/mixing.py: at most so many, and a multiple of so many


class TRMConfig(TokenConfig):
    H_cycles: int = Field(ge=1, le=1000, description="rounds of a reasoning step; only the last one carries gradient")
    L_cycles: int = Field(ge=1, le=1000, description="updates of the latent state before each update of the answer")
    L_layers: int = Field(ge=1, le=1000, description="blocks of the network")
    mlp_t: bool = Field(default=False, description="mix positions by a SwiGLU over them in place of attention")
    pos_encodings: Literal["rope", "learned", "none"] = Field(
        description="rotary positions, a learned vector per position, or none"
    )
    puzzle_emb_len: int = Field(
        default=0, ge=0, le=10**6, description="positions of a puzzle's embedding; 0: as many as the vector needs"
    )
    mixing: Literal["auto", "triton", "torch"] = Field(
        default="auto",
        description="kernel of mlp_t where no gradient is needed, on CUDA in half precision; auto: Triton's on H100s "
        "and H200s, where it was measured; triton: on any GPU; torch: PyTorch's",
    )
    state_init: Literal["fixed", "random"] = Field(
        default="fixed", description="states start from H_init and L_init, or from a draw for each row and position"
    )
    damping: float = Field(default=1.0, gt=0, le=1, description="share of an update in the new state; 1: no damping")
    noise: float = Field(default=0.0, ge=0, le=100, description="standard deviation of noise added by every update")
    q_target: Literal["off"] = Field(default="off", description="there is no Q(continue) that could have a target")

    @property
    def prefix_len(self) -> int:
        return self.puzzle_emb_len if self.puzzle_emb_len and self.puzzle_emb_ndim else super().prefix_len

    @model_validator(mode="after")
    def _embedding_fits(self):
        if self.prefix_len * self.hidden_size < self.puzzle_emb_ndim:
            raise ValueError(
                f"puzzle_emb_len={self.puzzle_emb_len} positions of {self.hidden_size} do not hold a vector of "
                f"puzzle_emb_ndim={self.puzzle_emb_ndim}; set puzzle_emb_len=0"
            )
        return self


@dataclass
class State:
    z_H: Tensor  # (B, P + S, D): the answer
    z_L: Tensor  # (B, P + S, D): the latent state


class TinyRecursiveModelInner(TokenNetwork):
    """One network for both states; the answer is read off z_H."""

    HAS_Q_CONTINUE = False

    def __init__(self, config: TRMConfig, data: DataShape):
        super().__init__(config, data)
        self.draws = config.state_init == "random" or config.noise > 0
        self.L_level = ReasoningModule([self.block() for _ in range(config.L_layers)])
        for name in ("H_init", "L_init"):
            start = torch.empty(config.hidden_size, dtype=self.forward_dtype)
            self.register_buffer(name, trunc_normal_init_(start, std=1))

    def block(self) -> nn.Module:
        if not self.config.mlp_t:
            return super().block()
        config = self.config
        triton = select_mixing(config.mixing, torch.empty(0).device.type, self.forward_dtype)
        block = MixerBlock(self.positions, config.hidden_size, config.expansion, config.rms_norm_eps, triton)
        if config.mixing == "triton" and triton and not block.triton:
            needs = f"at most {MOST_POSITIONS} positions and a hidden_size that is a multiple of {CHANNELS}"
            log.warning("arch.mixing=triton is not used: the kernel needs %s", needs)
        return block

    def initial_state(self, batch_size: int) -> State:
        shape = (batch_size, self.positions, self.config.hidden_size)
        if self.config.state_init == "random":
            return State(*(trunc_normal(shape, self.forward_dtype, self.H_init.device) for _ in range(2)))
        return State(self.H_init.expand(shape), self.L_init.expand(shape))

    def think(
        self, state: State, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> tuple[State, Tensor]:
        """H_cycles rounds; the last one carries gradient, through all of its L_cycles + 1 updates (section 4.1)."""
        with torch.no_grad():
            for _ in range(self.config.H_cycles - 1):
                state = self._round(state, x, cos_sin)
        state = self._round(state, x, cos_sin)
        return state, state.z_H

    def _round(self, state: State, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> State:
        z_H, z_L = state.z_H, state.z_L
        for _ in range(self.config.L_cycles):
            z_L = self._update(z_L, z_H + x, cos_sin)
        return State(self._update(z_H, z_L, cos_sin), z_L)

    def _update(self, z: Tensor, injection: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        new = self.L_level(z, injection, cos_sin)
        if self.config.damping != 1:
            new = (1 - self.config.damping) * z + self.config.damping * new
        return new + self.config.noise * torch.randn_like(new) if self.config.noise else new

    def compiled_modules(self) -> list[nn.Module]:
        return [*self.L_level.layers]


class MixerBlock(nn.Module):
    """A post-norm block that mixes positions by a SwiGLU over them, and then channels (section 4.5).

    The first norm is over the positions too, as in TRM's code. `cos_sin` is not used: weights tell positions apart.
    """

    def __init__(self, positions: int, hidden_size: int, expansion: float, eps: float, triton: bool = False):
        """`triton`: whether the kernel of models/mixing.py is there; it is used where it fits."""
        super().__init__()
        self.eps = eps
        self.mlp_t = SwiGLU(positions, expansion)
        self.mlp = SwiGLU(hidden_size, expansion)
        self.triton = triton and positions <= MOST_POSITIONS and hidden_size % CHANNELS == 0

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False) -> Tensor:
        x = self.mixed(x)
        x = x[:, :1] if first_only else x
        return rms_norm(x + self.mlp(x), self.eps)

    def uses_triton(self, x: Tensor) -> bool:
        return self.triton and x.is_cuda and not torch.is_grad_enabled()

    def mixed(self, x: Tensor) -> Tensor:
        """Positions of x (B, P + S, D), which tell each other what they hold."""
        if self.uses_triton(x):
            weights = (linear.cast_weight(x.dtype) for linear in (self.mlp_t.gate_up_proj, self.mlp_t.down_proj))
            return torch.ops.hrm.mix(x, *weights, self.eps)
        across = x.transpose(1, 2)  # (B, D, P + S)
        return rms_norm(across + self.mlp_t(across), self.eps).transpose(1, 2)


@cache
def select_mixing(name: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernel of models/mixing.py is to be used and works here. Logs it once."""
    if name == "torch" or device_type != "cuda" or dtype not in HALF:
        return False
    if name == "auto" and torch.cuda.get_device_capability()[0] != 9:
        return False
    try:
        importlib.import_module("models.mixing").try_out(dtype)
    except Exception as error:  # Triton is missing, or does not work here: what it raises may be anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        log.warning("the kernel for mlp_t does not work here, continuing with PyTorch's: %s", reason)
        return False
    log.info("mixing: triton")
    return True


class TinyRecursiveModel(ACTModel):
    """The network within ACT."""

    Config = TRMConfig
    Inner = TinyRecursiveModelInner
