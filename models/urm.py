"""The Universal Reasoning Model: a Universal Transformer with a short convolution in its SwiGLU.

UbiquantAI 2025, "Universal Reasoning Model" (arXiv 2512.14693). Read it from the top: a reasoning step is H_cycles
rounds of L_cycles updates h ← layers(h + x) of the one state; only the last round carries gradient, but all of it does.
There is no Q(continue): a sequence halts where Q(halt) > 0. Shapes: B sequences, S tokens, P puzzle-embedding positions
before them, D hidden size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.act import ACTModel, DataShape
from models.layers import Block, SwiGLU, run_blocks, trunc_normal_init_
from models.token_network import TokenConfig, TokenNetwork


class URMConfig(TokenConfig):
    H_cycles: int = Field(ge=1, le=1000, description="rounds of a reasoning step; only the last one carries gradient")
    L_cycles: int = Field(ge=1, le=1000, description="updates of the state in a round")
    num_layers: int = Field(ge=1, le=1000, description="blocks of the network")
    q_target: Literal["off"] = Field(default="off", description="there is no Q(continue) that could have a target")


@dataclass
class State:
    hidden: Tensor  # (B, P + S, D)


class UniversalReasoningModelInner(TokenNetwork):
    """One state, one stack of blocks."""

    HAS_Q_CONTINUE = False

    def __init__(self, config: URMConfig, data: DataShape):
        super().__init__(config, data)
        self.layers = nn.ModuleList([self.block() for _ in range(config.num_layers)])
        start = torch.empty(config.hidden_size, dtype=self.forward_dtype)
        self.register_buffer("init_hidden", trunc_normal_init_(start, std=1))

    def block(self) -> Block:
        block = super().block()
        block.mlp = ConvSwiGLU(self.config.hidden_size, self.config.expansion)
        return block

    def initial_state(self, batch_size: int) -> State:
        return State(self.init_hidden.expand(batch_size, self.positions, self.config.hidden_size))

    def think(
        self, state: State, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> tuple[State, Tensor]:
        """H_cycles rounds; the last one carries gradient (truncated backpropagation through loops)."""
        hidden = state.hidden
        with torch.no_grad():
            for _ in range((self.config.H_cycles - 1) * self.config.L_cycles):
                hidden = run_blocks(self.layers, hidden + x, cos_sin)
        for _ in range(self.config.L_cycles):
            hidden = run_blocks(self.layers, hidden + x, cos_sin)
        return State(hidden), hidden

    def compiled_modules(self) -> list[nn.Module]:
        return [*self.layers]


class ConvSwiGLU(SwiGLU):
    """SwiGLU whose gated product passes a depthwise convolution over positions, which sees the one before, and SiLU."""

    def __init__(self, hidden_size: int, expansion: float):
        super().__init__(hidden_size, expansion)
        width = self.down_proj.weight.shape[1]
        self.dwconv = nn.Conv1d(width, width, kernel_size=2, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        mixed = self._convolve((F.silu(gate) * up).transpose(1, 2)).transpose(1, 2)
        return self.down_proj(F.silu(mixed))

    def _convolve(self, x: Tensor) -> Tensor:
        """x (B, width, P + S), in the activations' dtype -> the same shape: position t from t - 1 and t."""
        weight, bias = self.dwconv.weight.to(x.dtype), self.dwconv.bias.to(x.dtype)
        return F.conv1d(x, weight, bias, padding=1, groups=x.shape[1])[..., : x.shape[-1]]


class UniversalReasoningModel(ACTModel):
    """The network within ACT."""

    Config = URMConfig
    Inner = UniversalReasoningModelInner
