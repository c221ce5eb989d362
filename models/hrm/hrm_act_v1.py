"""The Hierarchical Reasoning Model with adaptive computation time (ACT), version 1.

Wang et al. 2025, "Hierarchical Reasoning Model". Read it from the top: the ACT wrapper decides when a sequence halts,
the inner model runs H_cycles × L_cycles updates of the slow state z_H and the fast state z_L, a level is a stack of
blocks, a block is attention and SwiGLU. Shapes: B sequences, S tokens, P puzzle-embedding positions before them, D.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.attention import ATTENTION_KERNELS, select_attention
from models.common import trunc_normal_init_
from models.layers import Attention, CastedEmbedding, CastedLinear, RotaryEmbedding, SwiGLU, rms_norm
from models.sparse_embedding import SparseEmbedding

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Q_HEAD_BIAS = -5.0  # sigmoid(-5) = 0.007: Q-learning starts from "almost never right"


class HRMArchitecture(BaseModel):
    """What a user chooses about the model; the rest comes with the data."""

    model_config = ConfigDict(extra="forbid")

    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)
    H_layers: int = Field(ge=1)
    L_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    expansion: float = Field(gt=0)
    pos_encodings: Literal["rope", "learned"]
    puzzle_emb_ndim: int = Field(default=0, ge=0)
    halt_max_steps: int = Field(ge=1)
    halt_exploration_prob: float = Field(ge=0, le=1)
    # In which training steps Q(continue) has a target, which costs a second forward pass; `off` halts on Q(halt) alone.
    q_target: Literal["every_step", "every_n", "off"] = "every_step"
    q_target_interval: int = Field(default=4, ge=1)  # n
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    forward_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attention: Literal[ATTENTION_KERNELS] = "auto"

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_heads={self.num_heads}; "
                f"choose a hidden_size that is a multiple of it"
            )
        if self.pos_encodings == "rope" and (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size/num_heads={self.hidden_size // self.num_heads} is odd; "
                f"pos_encodings=rope rotates pairs: choose an even head size"
            )
        return self


class HierarchicalReasoningModel_ACTV1Config(HRMArchitecture):
    batch_size: int = Field(ge=1)  # of one rank, in training
    seq_len: int = Field(ge=1)
    num_puzzle_identifiers: int = Field(ge=1)
    vocab_size: int = Field(ge=2)


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere (bfloat16 is an order of magnitude slower on a CPU)."""
    if name == "auto":
        name = "bfloat16" if device_type == "cuda" else "float32"
    return DTYPES[name]


@dataclass
class InnerCarry:
    z_H: Tensor  # (B, P + S, D)
    z_L: Tensor  # (B, P + S, D)


@dataclass
class Carry:
    inner_carry: InnerCarry
    steps: Tensor  # (B,) int32: steps taken on the current data
    halted: Tensor  # (B,) bool: the row is replaced by the next batch's
    current_data: dict[str, Tensor]

    @torch.no_grad()
    def copy_(self, other: "Carry") -> None:
        """Take over the values of a carry of the same shapes; the tensors stay where they are."""
        torch._foreach_copy_(self._tensors(), other._tensors())

    def _tensors(self) -> list[Tensor]:
        return [self.inner_carry.z_H, self.inner_carry.z_L, self.steps, self.halted, *self.current_data.values()]


class HierarchicalReasoningModel_ACTV1(nn.Module):
    """ACT around the inner model: one call is one step of every sequence (paper, section "Adaptive computation")."""

    def __init__(self, config_dict: dict):
        super().__init__()
        self.config = HierarchicalReasoningModel_ACTV1Config(**config_dict)
        self.inner = HierarchicalReasoningModel_ACTV1_Inner(self.config)

    @property
    def puzzle_emb(self) -> SparseEmbedding | None:
        return self.inner.puzzle_emb

    def initial_carry(self, batch: dict[str, Tensor]) -> Carry:
        """All halted, so that the first call takes every row of its batch."""
        inputs = batch["inputs"]
        size, device = inputs.shape[0], inputs.device
        return Carry(
            inner_carry=self.inner.empty_carry(size, device),
            steps=torch.zeros(size, dtype=torch.int32, device=device),
            halted=torch.ones(size, dtype=torch.bool, device=device),
            current_data={name: torch.empty_like(field) for name, field in batch.items()},
        )

    def forward(self, carry: Carry, batch: dict[str, Tensor], q_target: bool = True) -> tuple[Carry, dict[str, Tensor]]:
        """One step. Outputs: `logits` (B, S, vocab), `q_halt_logits`, `q_continue_logits` (B,), and in training with
        ACT, unless `q_target` is False, `target_q_continue` (B,)."""
        inner_carry = self.inner.reset_carry(carry.halted, carry.inner_carry)
        steps = torch.where(carry.halted, 0, carry.steps)
        data = {name: _where_rows(carry.halted, batch[name], old) for name, old in carry.current_data.items()}

        inner_carry, logits, (q_halt, q_continue) = self.inner(inner_carry, data)
        outputs = {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}
        with torch.no_grad():
            steps = steps + 1
            last_step = steps >= self.config.halt_max_steps
            halted = last_step
            if self.training and self.config.halt_max_steps > 1:
                halted = self._halt(last_step, steps, q_halt, q_continue)
                if q_target:
                    outputs["target_q_continue"] = self._continue_target(inner_carry, data, last_step)
        return Carry(inner_carry, steps, halted, data), outputs

    def q_target_due(self, step: int) -> bool:
        """Whether the training step of this number, counted from 1, has a target of Q(continue)."""
        intervals = {"every_step": 1, "every_n": self.config.q_target_interval, "off": 0}
        interval = intervals[self.config.q_target]
        return self.config.halt_max_steps > 1 and interval > 0 and (step - 1) % interval == 0

    def wants_to_halt(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        return q_halt > (0 if self.config.q_target == "off" else q_continue)

    def _halt(self, last_step: Tensor, steps: Tensor, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        """Halt where Q says so, but explore: with some probability not before a minimum drawn from 2..max."""
        explore = torch.rand_like(q_halt) < self.config.halt_exploration_prob
        min_steps = explore * torch.randint_like(steps, low=2, high=self.config.halt_max_steps + 1)
        return (last_step | self.wants_to_halt(q_halt, q_continue)) & (steps >= min_steps)

    def _continue_target(self, inner_carry: InnerCarry, data: dict[str, Tensor], last_step: Tensor) -> Tensor:
        """Bootstrapped target of Q(continue): the best value one step further on, with the same weights.

        There is no target network and no replay buffer; the published recipe found them unnecessary.
        """
        next_halt, next_continue = self.inner.q_values(inner_carry, data)
        return torch.sigmoid(torch.where(last_step, next_halt, torch.maximum(next_halt, next_continue)))


def _where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *(1,) * (old.ndim - 1)), new, old)


class HierarchicalReasoningModel_ACTV1_Inner(nn.Module):
    """Embeds the data, runs the H and L cycles, and reads the answer and the Q values off z_H."""

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        device = torch.empty(0).device  # what a surrounding `with torch.device(…)` says
        self.forward_dtype = resolve_dtype(config.forward_dtype, device.type)
        self.embed_scale = hidden**0.5
        self.puzzle_emb_len = -(-config.puzzle_emb_ndim // hidden)  # P, rounded up

        embedding = dict(init_std=1 / self.embed_scale, cast_to=self.forward_dtype)
        self.embed_tokens = CastedEmbedding(config.vocab_size, hidden, **embedding)
        self.lm_head = CastedLinear(hidden, config.vocab_size, bias=False)
        self.q_head = CastedLinear(hidden, 2, bias=True)
        with torch.no_grad():
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(Q_HEAD_BIAS)
        self.puzzle_emb = None
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = SparseEmbedding(
                config.num_puzzle_identifiers,
                config.puzzle_emb_ndim,
                config.batch_size,
                init_std=0,
                cast_to=self.forward_dtype,
            )

        positions = self.puzzle_emb_len + config.seq_len
        self.rotary_emb = self.embed_pos = None
        if config.pos_encodings == "rope":
            self.rotary_emb = RotaryEmbedding(hidden // config.num_heads, positions, config.rope_theta)
        else:
            self.embed_pos = CastedEmbedding(positions, hidden, **embedding)

        kernel = select_attention(config.attention, device.type, self.forward_dtype)
        self.H_level = ReasoningModule([Block(config, kernel) for _ in range(config.H_layers)])
        self.L_level = ReasoningModule([Block(config, kernel) for _ in range(config.L_layers)])
        for name in ("H_init", "L_init"):
            self.register_buffer(name, trunc_normal_init_(torch.empty(hidden, dtype=self.forward_dtype), std=1))

    def empty_carry(self, batch_size: int, device: torch.device) -> InnerCarry:
        shape = (batch_size, self.puzzle_emb_len + self.config.seq_len, self.config.hidden_size)
        return InnerCarry(*(torch.zeros(shape, dtype=self.forward_dtype, device=device) for _ in range(2)))

    def reset_carry(self, halted: Tensor, carry: InnerCarry) -> InnerCarry:
        """Halted rows restart from the initial states."""
        return InnerCarry(_where_rows(halted, self.H_init, carry.z_H), _where_rows(halted, self.L_init, carry.z_L))

    def forward(self, carry: InnerCarry, batch: dict[str, Tensor]) -> tuple[InnerCarry, Tensor, tuple[Tensor, Tensor]]:
        """-> the new carry, without gradient; logits (B, S, vocab); (q_halt, q_continue), each (B,) float32."""
        z_H, z_L = self._cycles(carry, batch)
        logits = self.lm_head(z_H)[:, self.puzzle_emb_len :]
        return InnerCarry(z_H.detach(), z_L.detach()), logits, self._read_q(z_H)

    def q_values(self, carry: InnerCarry, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `forward`, for the Q values alone: of the last layer only position 0 is needed."""
        z_H, _ = self._cycles(carry, batch, first_only=True)
        return self._read_q(z_H)

    def _read_q(self, z_H: Tensor) -> tuple[Tensor, Tensor]:
        q_halt, q_continue = self.q_head(z_H[:, 0]).float().unbind(-1)
        return q_halt, q_continue

    def _cycles(self, carry: InnerCarry, batch: dict[str, Tensor], first_only: bool = False) -> tuple[Tensor, Tensor]:
        """H_cycles of L_cycles each; the one-step gradient flows through the last update of either level only."""
        cos_sin = self.rotary_emb() if self.rotary_emb is not None else None
        x = self._embed(batch["inputs"], batch["puzzle_identifiers"])
        z_H, z_L = carry.z_H, carry.z_L
        with torch.no_grad():
            for h in range(self.config.H_cycles):
                last_h = h == self.config.H_cycles - 1
                for _ in range(self.config.L_cycles - last_h):
                    z_L = self.L_level(z_L, z_H + x, cos_sin)
                if not last_h:
                    z_H = self.H_level(z_H, z_L, cos_sin)
        z_L = self.L_level(z_L, z_H + x, cos_sin)
        z_H = self.H_level(z_H, z_L, cos_sin, first_only)
        return z_H, z_L

    def _embed(self, inputs: Tensor, puzzle_identifiers: Tensor) -> Tensor:
        """Tokens (B, S) and puzzle identifiers (B,) -> (B, P + S, D)."""
        x = self.embed_tokens(inputs)
        if self.puzzle_emb is not None:
            vector = self.puzzle_emb(puzzle_identifiers)  # (B, puzzle_emb_ndim)
            padding = self.puzzle_emb_len * self.config.hidden_size - vector.shape[-1]
            vector = F.pad(vector, (0, padding)).view(-1, self.puzzle_emb_len, self.config.hidden_size)
            x = torch.cat((vector, x), dim=1)
        if self.embed_pos is not None:
            x = 0.707106781 * (x + self.embed_pos.embedding_weight.to(self.forward_dtype))  # keeps the variance
        return self.embed_scale * x


class ReasoningModule(nn.Module):
    """One level: its state plus what the other level injects, through a stack of blocks."""

    def __init__(self, layers: list["Block"]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, state: Tensor, injection: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> Tensor:
        """-> the new state (B, S, hidden); with `first_only` its position 0 alone, (B, 1, hidden)."""
        x = state + injection
        for layer in self.layers[:-1]:
            x = layer(x, cos_sin)
        return self.layers[-1](x, cos_sin, first_only)


class Block(nn.Module):
    """A post-norm Transformer block."""

    def __init__(self, config: HRMArchitecture, kernel):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = Attention(config.hidden_size, config.num_heads, kernel)
        self.mlp = SwiGLU(config.hidden_size, config.expansion)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False) -> Tensor:
        attended = self.self_attn(x, cos_sin, first_only)
        x = rms_norm((x[:, :1] if first_only else x) + attended, self.eps)
        return rms_norm(x + self.mlp(x), self.eps)
