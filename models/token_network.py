"""What the networks of this family share: tokens and puzzle embeddings in, logits and Q values out.

Names of parameters are those of the published checkpoints. Shapes: B sequences, S tokens, P puzzle-embedding positions
before them, D hidden size.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.act import ACTConfig, Data, DataShape, InnerNetwork, QValues, map_tensors, no_target
from models.layers import (
    ATTENTION_KERNELS,
    AttentionKernel,
    Block,
    CastedEmbedding,
    CastedLinear,
    RotaryEmbedding,
    select_attention,
    weights_cast,
)
from models.sparse_embedding import SparseEmbedding

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Q_HEAD_BIAS = -5.0  # sigmoid(-5) = 0.007: Q-learning starts from "almost never right"


class TokenConfig(ACTConfig):
    """What a user chooses about any network of Transformer blocks over tokens."""

    hidden_size: int = Field(ge=1, le=10**9, description="width of the states, D")
    num_heads: int = Field(ge=1, le=10**9, description="attention heads")
    expansion: float = Field(
        gt=0, le=1e4, description="width of the SwiGLU relative to hidden_size, before the factor 2/3"
    )
    pos_encodings: Literal["rope", "learned"] = Field(description="rotary positions, or a learned vector per position")
    puzzle_emb_ndim: int = Field(
        default=0, ge=0, le=10**9, description="size of a puzzle's embedding; 0: none, puzzles are not told apart"
    )
    rms_norm_eps: float = Field(default=1e-5, ge=1e-30, le=1, description="epsilon of RMSNorm")
    rope_theta: float = Field(default=10000.0, ge=1, le=1e30, description="base of the rotary positions' wavelengths")
    forward_dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="dtype of activations; auto: bfloat16 on CUDA, float32 elsewhere"
    )
    attention: Literal[ATTENTION_KERNELS] = Field(
        default="auto", description="kernel; auto: FlashAttention if it is installed and fits, else PyTorch's (sdpa)"
    )

    @property
    def prefix_len(self) -> int:
        """P, the positions of a puzzle's embedding before the tokens: as many as the vector needs."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_heads={self.num_heads}; "
                f"choose a hidden_size that is a multiple of it"
            )
        if round(self.expansion * self.hidden_size * 2 / 3) < 1:
            raise ValueError(f"expansion={self.expansion} leaves SwiGLU no width; choose a larger one, 4 is usual")
        if self.pos_encodings == "rope" and (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size/num_heads={self.hidden_size // self.num_heads} is odd; "
                f"pos_encodings=rope rotates pairs: choose an even head size"
            )
        return self


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere (bfloat16 is an order of magnitude slower on a CPU)."""
    if name == "auto":
        name = "bfloat16" if device_type == "cuda" else "float32"
    return DTYPES[name]


class TokenNetwork(InnerNetwork):
    """Embeds the data, leaves the reasoning to `think`, and reads the answer and the Q values off its result.

    A derived class builds its own modules after `super().__init__`, in the order of their random draws.
    """

    HAS_Q_CONTINUE: ClassVar[bool] = True  # else the Q head's second output, which published weights have, is not used

    def __init__(self, config: TokenConfig, data: DataShape):
        super().__init__(config, data)
        if not self.HAS_Q_CONTINUE and config.q_target != "off" and config.halt_max_steps > 1:
            raise no_target(self)
        hidden = config.hidden_size
        device = torch.empty(0).device  # what a surrounding `with torch.device(…)` says
        self.forward_dtype = resolve_dtype(config.forward_dtype, device.type)
        self.kernel: AttentionKernel = select_attention(config.attention, device.type, self.forward_dtype)
        self.embed_scale = hidden**0.5
        self.puzzle_emb_len = config.prefix_len  # P
        self.positions = self.puzzle_emb_len + data.seq_len

        embedding = dict(init_std=1 / self.embed_scale, cast_to=self.forward_dtype)
        self.embed_tokens = CastedEmbedding(data.vocab_size, hidden, **embedding)
        self.lm_head = CastedLinear(hidden, data.vocab_size, bias=False)
        self.q_head = CastedLinear(hidden, 2, bias=True)
        with torch.no_grad():
            self.q_head.weight.zero_()
            self.q_head.bias.fill_(Q_HEAD_BIAS)
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = SparseEmbedding(
                data.num_puzzle_identifiers,
                config.puzzle_emb_ndim,
                data.batch_size,
                init_std=0,
                cast_to=self.forward_dtype,
            )
        self.rotary_emb = self.embed_pos = None
        if config.pos_encodings == "rope":
            self.rotary_emb = RotaryEmbedding(hidden // config.num_heads, self.positions, config.rope_theta)
        elif config.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(self.positions, hidden, **embedding)

    def block(self) -> Block:
        """A new Transformer block, as the config describes it."""
        config = self.config
        return Block(config.hidden_size, config.num_heads, config.expansion, config.rms_norm_eps, self.kernel)

    @abstractmethod
    def think(
        self, state: Any, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None, first_only: bool = False
    ) -> tuple[Any, Tensor]:
        """One reasoning step on the embedded data x (B, P + S, D).

        -> the next state, with gradient where the recipe has one, and z (B, P + S, D), which the answer is read off.
        `cos_sin` are the tables of the rotary positions. With `first_only` the caller does not use the state, and of z
        only position 0, so that z may be (B, 1, D).
        """

    def forward(self, state: Any, data: Data) -> tuple[Any, Tensor, QValues]:
        with self.cast_once():
            state, z = self.think(state, *self._embed(data))
        logits = self.lm_head(z)[:, self.puzzle_emb_len :]
        return map_tensors(Tensor.detach, state), logits, self._read_q(z)

    def q_values(self, state: Any, data: Data) -> QValues:
        with self.cast_once():
            _, z = self.think(state, *self._embed(data), first_only=True)
        return self._read_q(z)

    def cast_once(self) -> AbstractContextManager:
        """Around `think`: its passes without gradient need not cast the weights of the blocks each time."""
        return weights_cast(nn.ModuleList(self.compiled_modules()), self.forward_dtype)

    def _read_q(self, z: Tensor) -> QValues:
        """Q values from position 0: the first of the puzzle embedding or, without one, the first token's."""
        q_halt, q_continue = self.q_head(z[:, 0]).float().unbind(-1)
        return q_halt, q_continue if self.HAS_Q_CONTINUE else None

    def _embed(self, data: Data) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Tokens (B, S) and puzzle identifiers (B,) -> (B, P + S, D), and the tables of the rotary positions."""
        x = self.embed_tokens(data["inputs"])
        if self.puzzle_emb is not None:
            vector = self.puzzle_emb(data["puzzle_identifiers"])  # (B, puzzle_emb_ndim)
            padding = self.puzzle_emb_len * self.config.hidden_size - vector.shape[-1]
            vector = F.pad(vector, (0, padding)).view(-1, self.puzzle_emb_len, self.config.hidden_size)
            x = torch.cat((vector, x), dim=1)
        if self.embed_pos is not None:
            x = 0.707106781 * (x + self.embed_pos.embedding_weight.to(self.forward_dtype))  # keeps the variance
        return self.embed_scale * x, self.rotary_emb() if self.rotary_emb is not None else None
