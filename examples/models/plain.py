"""A plain Transformer within ACT, an architecture that the project does not know; it shares no layer with the others.

Its state is one tensor. It has no Q(continue), so it is trained with `q_target=off`. In training it runs its layers
once in the first steps of a run, and twice after them.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from models.act import ACTConfig, ACTModel, DataShape, InnerNetwork


class Config(ACTConfig):
    width: int = Field(ge=8, description="of the state")
    depth: int = Field(default=1, ge=1, description="layers")
    shallow_steps: int = Field(default=5, ge=0, description="training steps in which the layers run once")


@dataclass
class Thought:
    board: Tensor  # (B, S + 1, width)


class Network(InnerNetwork):
    def __init__(self, config: Config, data: DataShape):
        super().__init__(config, data)
        self.positions = data.seq_len + 1
        self.tokens = nn.Embedding(data.vocab_size, config.width)
        self.places = nn.Parameter(torch.randn(self.positions, config.width) * 0.1)
        layer = dict(d_model=config.width, nhead=2, dim_feedforward=2 * config.width, dropout=0, batch_first=True)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(**layer) for _ in range(config.depth)])
        self.answer = nn.Linear(config.width, data.vocab_size)
        self.sure = nn.Linear(config.width, 1)
        nn.init.constant_(self.sure.bias, 1)  # sure at first, so that in a short run rows halt at different steps
        self.rounds = 2

    def begin_step(self, step: int) -> int:
        self.rounds = 1 if step <= self.config.shallow_steps else 2
        return self.rounds

    def initial_state(self, batch_size: int) -> Thought:
        return Thought(torch.zeros_like(self.places).expand(batch_size, -1, -1))

    def forward(self, state: Thought, data: dict[str, Tensor]):
        asked = nn.functional.pad(self.tokens(data["inputs"].long()), (0, 0, 1, 0)) + self.places
        board = state.board
        for _ in range(self.rounds):
            board = board + asked
            for layer in self.layers:
                board = layer(board)
        sure = self.sure(board[:, 0]).squeeze(-1).float()
        return Thought(board.detach()), self.answer(board[:, 1:]), (sure, None)

    def compiled_modules(self) -> list[nn.Module]:
        return list(self.layers)


class PlainTransformer(ACTModel):
    Config, Inner = Config, Network
