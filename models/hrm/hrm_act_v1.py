"""The Hierarchical Reasoning Model with adaptive computation time (ACT), version 1.

Wang et al. 2025, "Hierarchical Reasoning Model". Read it from the top: in a reasoning step the network updates the slow
state z_H H_cycles times, each time after L_cycles updates of the fast state z_L; a level is a stack of blocks, a block
is attention and SwiGLU. models/act.py decides when a sequence halts; models/token_network.py has embeddings, logits and
Q values. Shapes: B sequences, S tokens, P puzzle-embedding positions before them, D hidden size.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from models.act import ACTModel, DataShape
from models.layers import ReasoningModule, trunc_normal_init_
from models.token_network import TokenConfig, TokenNetwork


class HRMConfig(TokenConfig):
    H_cycles: int = Field(ge=1, le=1000, description="updates of the slow state in a reasoning step")
    L_cycles: int = Field(ge=1, le=1000, description="updates of the fast state before each update of the slow state")
    H_layers: int = Field(ge=1, le=1000, description="blocks of the slow level")
    L_layers: int = Field(ge=1, le=1000, description="blocks of the fast level")


@dataclass
class InnerCarry:
    z_H: Tensor  # (B, P + S, D)
    z_L: Tensor  # (B, P + S, D)


class HierarchicalReasoningModel_ACTV1_Inner(TokenNetwork):
    """Two levels that take turns; the answer is read off the slow one."""

    def __init__(self, config: HRMConfig, data: DataShape):
        super().__init__(config, data)
        self.H_level = ReasoningModule([self.block() for _ in range(config.H_layers)])
        self.L_level = ReasoningModule([self.block() for _ in range(config.L_layers)])
        for name in ("H_init", "L_init"):
            start = torch.empty(config.hidden_size, dtype=self.forward_dtype)
            self.register_buffer(name, trunc_normal_init_(start, std=1))

    def initial_state(self, batch_size: int) -> InnerCarry:
        shape = (batch_size, self.positions, self.config.hidden_size)
        return InnerCarry(self.H_init.expand(shape), self.L_init.expand(shape))

    def think(
        self, state: InnerCarry, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> tuple[InnerCarry, Tensor]:
        """H_cycles of L_cycles each; only the last update of each level carries gradient (the one-step gradient)."""
        z_H, z_L = state.z_H, state.z_L
        with torch.no_grad():
            for h in range(self.config.H_cycles):
                last_h = h == self.config.H_cycles - 1
                for _ in range(self.config.L_cycles - last_h):
                    z_L = self.L_level(z_L, z_H + x, cos_sin)
                if not last_h:
                    z_H = self.H_level(z_H, z_L, cos_sin)
        z_L = self.L_level(z_L, z_H + x, cos_sin)
        z_H = self.H_level(z_H, z_L, cos_sin, first_only)
        return InnerCarry(z_H, z_L), z_H

    def compiled_modules(self) -> list[nn.Module]:
        return [*self.H_level.layers, *self.L_level.layers]


class HierarchicalReasoningModel_ACTV1(ACTModel):
    """The network within ACT."""

    Config = HRMConfig
    Inner = HierarchicalReasoningModel_ACTV1_Inner
