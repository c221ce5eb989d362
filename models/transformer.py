"""A plain Transformer as the network of ACT: the baseline without hierarchy and without recursion inside a step.

ARC Prize Foundation 2025, "The Hidden Drivers of HRM's Performance on ARC-AGI": a Transformer of HRM's size, called
once in a reasoning step, z ← blocks(z + x), with gradient. With `halt_max_steps: 1` it is the HRM paper's "direct
prediction": one pass from the input to the answer. Shapes: B sequences, S tokens, P puzzle-embedding positions before
them, D hidden size.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from models.act import ACTModel, DataShape
from models.layers import ReasoningModule, trunc_normal_init_
from models.token_network import TokenConfig, TokenNetwork


class TransformerConfig(TokenConfig):
    num_layers: int = Field(ge=1, le=1000, description="blocks of the network")


@dataclass
class State:
    z_H: Tensor  # (B, P + S, D)


class RecurrentTransformerInner(TokenNetwork):
    """One state, updated once in a reasoning step; halting is HRM's. Weights are named as in TRM's code."""

    def __init__(self, config: TransformerConfig, data: DataShape):
        super().__init__(config, data)
        self.H_level = ReasoningModule([self.block() for _ in range(config.num_layers)])
        start = torch.empty(config.hidden_size, dtype=self.forward_dtype)
        self.register_buffer("H_init", trunc_normal_init_(start, std=1))

    def initial_state(self, batch_size: int) -> State:
        return State(self.H_init.expand(batch_size, self.positions, self.config.hidden_size))

    def think(
        self, state: State, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> tuple[State, Tensor]:
        z_H = self.H_level(state.z_H, x, cos_sin, first_only)
        return State(z_H), z_H

    def cast_once(self) -> AbstractContextManager:
        return nullcontext()  # in training every pass carries gradient

    def compiled_modules(self) -> list[nn.Module]:
        return [*self.H_level.layers]


class RecurrentTransformer(ACTModel):
    """The network within ACT."""

    Config = TransformerConfig
    Inner = RecurrentTransformerInner
