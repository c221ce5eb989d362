"""Adaptive computation time (ACT) around a network, and what an architecture of this family is.

An architecture is one file below `models/`, which defines what is its own:

    class Config(ACTConfig)            what a user chooses about it
    class Network(InnerNetwork)        the initial state, and one reasoning step; or derived from
                                       models/token_network.py, which has embeddings, logits and Q values
    class Model(ACTModel)              the two together: `Config = Config`, `Inner = Network`

`arch.name=<module>@<class>` names the last one (docs/extending.md has an example from end to end). Training, resuming,
evaluation, compilation, CUDA graphs, voting and figures know an architecture only through this file. Shapes: B
sequences, S tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from errors import UserError
from extension import import_below
from models.sparse_embedding import SparseEmbedding

Data = dict[str, Tensor]  # `inputs` (B, S), `puzzle_identifiers` (B,), int32; for training and scoring `labels` too
# Logits of Q(halt) and Q(continue), (B,) float32 each; None for an architecture without Q(continue)
QValues = tuple[Tensor, Tensor | None]

FORWARD_GIVES = "(state, logits, (q_halt, q_continue)), where q_continue may be None"


class ACTConfig(BaseModel):
    """What a user chooses about any architecture. An architecture's `Config` adds keys of its own."""

    model_config = ConfigDict(extra="forbid")

    halt_max_steps: int = Field(ge=1, le=65_535, description="most reasoning steps; 1 switches ACT off")
    halt_exploration_prob: float = Field(
        ge=0, le=1, description="in training, probability that a step must not halt before a drawn number of steps"
    )
    halt_confidence: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="a sequence wants to halt where sigmoid(Q(halt)) is above this, in training too; null: as in the "
        "originals, where Q(halt) > Q(continue) or, with q_target=off, Q(halt) > 0",
    )
    halt_extra_steps: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="in training, a sequence that first wants to halt goes on for 0 to this many steps, drawn, so that "
        "it is supervised past its first right answer",
    )
    q_target: Literal["every_step", "off"] = Field(
        default="every_step",
        description="when Q(continue) gets a target, which costs a second forward pass; off: never, and a sequence "
        "halts where Q(halt) > 0",
    )


class DataShape(BaseModel):
    """What the data determine."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(ge=1)  # of one rank, in training
    seq_len: int = Field(ge=1)  # S
    vocab_size: int = Field(ge=2)
    num_puzzle_identifiers: int = Field(ge=1)  # the blank included


class InnerNetwork(nn.Module, ABC):
    """The recurrent network inside ACT. Its state is a dataclass of tensors whose first axis is the batch."""

    puzzle_emb: SparseEmbedding | None  # trained by its own optimiser; None: puzzles are not told apart
    positions: int  # computed for a sequence in a reasoning step: S, plus those of a puzzle embedding
    draws: bool  # whether a reasoning step or a start draws random numbers in evaluation too, which then seeds them

    def __init__(self, config: ACTConfig, data: DataShape):
        super().__init__()
        self.config = config
        self.positions = data.seq_len
        self.draws = False
        self.puzzle_emb = None

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """What a sequence starts from, on the network's device; the tensors may be views of one row."""

    @abstractmethod
    def forward(self, state: Any, data: Data) -> tuple[Any, Tensor, QValues]:
        """One reasoning step -> (state, logits, (q_halt, q_continue)): the next state, detached; logits (B, S, vocab).

        An architecture without Q(continue) gives None for it and is trained with `q_target=off`.
        """

    def q_values(self, state: Any, data: Data) -> QValues:
        """The Q values that `forward` gives; worth code of its own if they can be had more cheaply."""
        return self(state, data)[2]

    def compiled_modules(self) -> list[nn.Module]:
        """What `torch.compile` is applied to, module by module, such as every Transformer block."""
        return []

    def begin_step(self, step: int) -> Hashable:
        """Called on the host before training step `step`, counted from 1, for a network that changes during training.

        -> what the operations of the step depend on: steps with equal values share one CUDA graph.
        """
        return None

    def empty_carry(self, batch_size: int, device: torch.device | None = None) -> Any:
        """A state of the right shape, whose values the first reset overwrites."""
        like = self.initial_state(batch_size)
        for part, tensor in named_tensors(like):
            if tensor.shape[:1] != (batch_size,):
                raise ValueError(
                    f"{type(self).__name__}.initial_state({batch_size}) gives a state whose {part} has the shape "
                    f"{tuple(tensor.shape)}; its first axis must be the batch"
                )
        return map_tensors(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device), like)

    def reset_carry(self, halted: Tensor, state: Any) -> Any:
        """Rows that have halted restart from the initial state."""
        fresh = self.initial_state(len(halted))
        return map_tensors(lambda new, old: where_rows(halted, new, old), fresh, state)


@dataclass
class Carry:
    """Where every sequence of a batch is between two reasoning steps."""

    inner_carry: Any  # the network's state
    steps: Tensor  # (B,) int32: steps taken on the current data
    halted: Tensor  # (B,) bool: the row is replaced by the next batch's
    current_data: Data
    # (B,) int32, with halt_extra_steps: the step before which a row that has wanted to halt does not; 0: it has not yet
    not_before: Tensor | None = None

    @torch.no_grad()
    def copy_(self, other: "Carry") -> None:
        """Copy in the values of a carry of the same shapes; the tensors stay where they are."""
        torch._foreach_copy_(list(tensors_of(self)), list(tensors_of(other)))

    @torch.no_grad()
    def load(self, saved: dict) -> None:
        """Copy in the values of a carry that `asdict` turned into dictionaries."""
        map_tensors(lambda mine, theirs: mine.copy_(theirs), self, saved)


class ACTModel(nn.Module):
    """One call is one reasoning step of every sequence (HRM paper, section "Adaptive computational time")."""

    Config: ClassVar[type[ACTConfig]]
    Inner: ClassVar[type[InnerNetwork]]

    def __init__(self, config_dict: dict):
        """`config_dict` holds the fields of `Config` and of `DataShape`."""
        super().__init__()
        of_data = config_dict.keys() & DataShape.model_fields.keys()
        self.data = DataShape(**{key: config_dict[key] for key in of_data})
        self.config = self.Config(**{key: value for key, value in config_dict.items() if key not in of_data})
        self.inner = self.Inner(self.config, self.data)

    @property
    def puzzle_emb(self) -> SparseEmbedding | None:
        return self.inner.puzzle_emb

    def initial_carry(self, batch: Data) -> Carry:
        """A carry in which all rows have halted, so that the first call takes every row of its batch."""
        size, device = batch["inputs"].shape[0], batch["inputs"].device
        steps = torch.zeros(size, dtype=torch.int32, device=device)
        return Carry(
            inner_carry=self.inner.empty_carry(size, device),
            steps=steps,
            halted=torch.ones(size, dtype=torch.bool, device=device),
            current_data={name: torch.empty_like(field) for name, field in batch.items()},
            not_before=steps.clone() if self.config.halt_extra_steps else None,
        )

    def forward(self, carry: Carry, batch: Data) -> tuple[Carry, dict[str, Tensor]]:
        """Take one step. Outputs: `logits` (B, S, vocab), `q_halt_logits`, `q_continue_logits` (B,) and, in training
        with ACT and a Q target, `target_q_continue` (B,)."""
        # A halted row is replaced: initial state, step 0, and the new batch's data.
        state = self.inner.reset_carry(carry.halted, carry.inner_carry)
        steps = torch.where(carry.halted, 0, carry.steps)
        data = {name: where_rows(carry.halted, batch[name], old) for name, old in carry.current_data.items()}

        state, logits, q_halt, q_continue = self.advance(state, data)
        outputs = {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}
        with torch.no_grad():
            steps = steps + 1
            last_step = steps >= self.config.halt_max_steps
            halted, not_before = last_step, carry.not_before
            if self.training and self.config.halt_max_steps > 1:
                wants = self.wants_to_halt(q_halt, q_continue)
                if not_before is not None:
                    not_before = self._wait(wants, steps, torch.where(carry.halted, 0, not_before))
                    wants = wants & (steps >= not_before)
                halted = self._halt(last_step, steps, wants)
                if self.config.q_target == "every_step":
                    outputs["target_q_continue"] = self._continue_target(state, data, last_step)
        return Carry(state, steps, halted, data, not_before), outputs

    def advance(self, state: Any, data: Data) -> tuple[Any, Tensor, Tensor, Tensor]:
        """One step of the network: the next state, logits, Q(halt) and Q(continue), which is 0 if there is none.

        Raises `ValueError` for what is not as `InnerNetwork.forward` promises.
        """
        name, (rows, cells) = type(self.inner).__name__, data["inputs"].shape
        before, given = state, self.inner(state, data)
        if not (
            isinstance(given, tuple)
            and [isinstance(part, tuple) for part in given[1:]] == [False, True]
            and len(given[2]) == 2
        ):
            raise ValueError(f"{name}.forward gives {_described(given)}; it must be {FORWARD_GIVES}")
        state, logits, (q_halt, q_continue) = given
        if q_continue is None:
            if self.config.q_target != "off" and self.config.halt_max_steps > 1:
                raise no_target(self.inner)
            q_continue = torch.zeros_like(q_halt)
        expected = {"logits": (rows, cells, self.data.vocab_size), "Q(halt)": (rows,), "Q(continue)": (rows,)}
        for (what, shape), found in zip(expected.items(), (logits, q_halt, q_continue), strict=True):
            if found.shape != shape:
                raise ValueError(f"{name} gives {what} of shape {tuple(found.shape)}, which must be {shape}")
            if what != "logits" and found.dtype != torch.float32:
                raise ValueError(f"{name} gives {what} in {found.dtype}, which must be float32")
        self._check_state(before, state)
        return state, logits, q_halt, q_continue

    def _check_state(self, before: Any, after: Any) -> None:
        """A step may change the values of a state only: each row of a batch is at a step of its own."""
        name, start, end = type(self.inner).__name__, dict(named_tensors(before)), dict(named_tensors(after))
        if start.keys() != end.keys():
            raise ValueError(f"{name} gives a state of {', '.join(end)}, but initial_state gives {', '.join(start)}")
        for part, tensor in end.items():
            kinds = [(tuple(state.shape), state.dtype) for state in (tensor, start[part])]
            if kinds[0] != kinds[1]:
                now, was = (f"{dtype} {shape}" for shape, dtype in kinds)
                raise ValueError(f"{name} gives a state whose {part} is {now}, but initial_state gives {was}")
            if tensor.requires_grad:
                raise ValueError(f"{name} gives a state whose {part} carries gradient; give {part}.detach()")

    @property
    def halts_above(self) -> float | None:
        """The logit of Q(halt) above which a sequence wants to halt; None: where it is above that of Q(continue)."""
        if (sure := self.config.halt_confidence) is not None:
            return math.log(sure / (1 - sure))
        return 0 if self.config.q_target == "off" else None

    def wants_to_halt(self, q_halt: Tensor, q_continue: Tensor) -> Tensor:
        return q_halt > (q_continue if self.halts_above is None else self.halts_above)

    def _halt(self, last_step: Tensor, steps: Tensor, wants: Tensor) -> Tensor:
        """Halt where Q says so, but explore: with some probability, not before a minimum drawn from 2..max."""
        explore = torch.rand(steps.shape, device=steps.device) < self.config.halt_exploration_prob
        min_steps = explore * torch.randint_like(steps, low=2, high=self.config.halt_max_steps + 1)
        return (last_step | wants) & (steps >= min_steps)

    def _wait(self, wants: Tensor, steps: Tensor, not_before: Tensor) -> Tensor:
        """A row's first wish to halt draws when it may: in this step, or up to `halt_extra_steps` later."""
        drawn = steps + torch.randint_like(steps, low=0, high=self.config.halt_extra_steps + 1)
        return torch.where(wants & (not_before == 0), drawn, not_before)

    def _continue_target(self, state: Any, data: Data, last_step: Tensor) -> Tensor:
        """Bootstrapped target of Q(continue): the best value one step further on, with the same weights.

        There is no target network and no replay buffer; the published recipe found them unnecessary.
        """
        next_halt, next_continue = self.inner.q_values(state, data)
        return torch.sigmoid(torch.where(last_step, next_halt, torch.maximum(next_halt, next_continue)))


def no_target(network: InnerNetwork) -> UserError:
    return UserError(f"{type(network).__name__} has no Q(continue) that could have a target; set arch.q_target=off")


def _described(given: Any) -> str:
    """What a network's step has given, by types."""
    if not isinstance(given, tuple):
        return f"a {type(given).__name__}"
    return f"({', '.join(_described(part) if isinstance(part, tuple) else type(part).__name__ for part in given)})"


def find_architecture(name: str) -> type[ACTModel]:
    """The class below models/ that `arch.name=<module>@<class>` names. Raises `UserError` if there is none."""
    module_name, _, class_name = name.partition("@")
    module = import_below("models", module_name)
    found = getattr(module, class_name, None)
    lacks = None
    if module is None:
        lacks = "does not exist"
    elif not (isinstance(found, type) and issubclass(found, ACTModel)):
        lacks = f"has no architecture {class_name}, a class derived from ACTModel"
    elif not issubclass(getattr(found, "Config", object), ACTConfig):
        lacks = f"has {class_name}, but its Config is not derived from ACTConfig"
    elif not issubclass(getattr(found, "Inner", object), InnerNetwork):
        lacks = f"has {class_name}, but its Inner is not derived from InnerNetwork"
    if lacks is not None:
        raise UserError(
            f"name={name}: models/{module_name.replace('.', '/')}.py {lacks}; it is <module>@<class> below models/, "
            f"here or in a folder on PYTHONPATH, such as hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"
        )
    return found


# Trees of tensors: a tensor, or a dataclass or dictionary of trees, or None.


def map_tensors(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """A tree of the same shape, in which `function` is applied to the tensors at the same place of all trees."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return function(tree, *others)
    parts = {}
    for name, part in _parts(tree).items():
        # What is None here may be missing elsewhere, as in a carry that was saved before the field existed
        parts[name] = None if part is None else map_tensors(function, part, *(_part(other, name) for other in others))
    return parts if isinstance(tree, dict) else replace(tree, **parts)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, in the order of its fields."""
    return (tensor for _, tensor in named_tensors(tree))


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree with their names, `.` between those of different levels."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif tree is not None:
        for part, value in _parts(tree, name).items():
            yield from named_tensors(value, f"{name}.{part}" if name else part)


def _parts(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return tree
    assert is_dataclass(tree), f"a state is a dataclass of tensors, but {name or 'it'} is of type {type(tree).__name__}"
    return {field.name: getattr(tree, field.name) for field in fields(tree)}


def _part(tree: Any, name: str) -> Any:
    return tree[name] if isinstance(tree, dict) else getattr(tree, name)


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` where `mask` (B,) is set, of `old` elsewhere."""
    return torch.where(mask.view(-1, *(1,) * (old.ndim - 1)), new, old)
