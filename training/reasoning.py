"""The loop over reasoning steps in evaluation: a batch from its first step to its last, by one of two halting rules.

max   every sequence takes all steps, as in the original: the device is never asked anything in between
q     a sequence stops when the model wants to halt and leaves the batch, which saves the time of its other steps

Nothing here reads a label. Training has a loop of its own, in which the sequences of a batch have taken different
numbers of steps (models/act.py).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.act import ACTModel, map_tensors, where_rows
from puzzle_dataset import Batch
from training.cuda_graph import Graph
from training.generators import OwnDraws

HALTING = ("max", "q")


@dataclass
class Step:
    """The sequences that are still in the batch, after one step."""

    number: int  # from 1
    rows: Tensor  # (n,) int64: which rows of the batch these are, ascending
    logits: Tensor  # (n, S, vocab)
    q_halt: Tensor  # (n,) float32 logits
    q_continue: Tensor  # (n,) float32 logits
    state: Any  # the network's, see models/act.py
    wants_to_halt: Tensor  # (n,) bool: what the model says
    last: Tensor  # (n,) bool: by the halting rule, this was the sequence's last step

    @property
    def answer(self) -> Tensor:
        """(n, S) int64: the most likely token of each cell."""
        return self.logits.argmax(-1)

    @property
    def is_number(self) -> Tensor:
        """(n,) bool: whether each sequence has an answer, see `are_numbers`."""
        return are_numbers(self.logits, self.q_halt, self.q_continue)

    @property
    def confidence(self) -> Tensor:
        """(n,): sigmoid of q_halt, the model's own estimate that the whole answer is right."""
        return torch.sigmoid(self.q_halt)


def are_numbers(logits: Tensor, q_halt: Tensor, q_continue: Tensor) -> Tensor:
    """(n,) bool: whether each sequence has an answer at all: no logit is NaN, and both Q are finite.

    Weights that are numbers can still overflow on the way. A logit may be infinite: so a model forbids a token.
    """
    return ~logits.isnan().flatten(1).any(1) & q_halt.isfinite() & q_continue.isfinite()


@dataclass
class Halted:
    """A batch, each row as it was after the first step in which the model wanted to halt, else after its last."""

    outputs: dict[str, Tensor]  # as in `Finished`
    steps: Tensor  # (B,) int32


@dataclass
class Finished:
    """A batch, each row as it was after its own last step."""

    data: Batch  # its rows
    outputs: dict[str, Tensor]  # logits (B, S, vocab), q_halt_logits, q_continue_logits (B,)
    steps: Tensor  # (B,) int32: how many each row took
    at_halt: "Halted | None"  # with the rule `max`: where the rule `q` would have stopped, which costs no other pass
    answers_by_step: Tensor | None  # (B, max_steps, S) uint8: a row's last answer is repeated


class Reasoner:
    """Runs a model in evaluation mode. With a CUDA graph all batches must have the same shape.

    A model with random starts or noise draws from a stream of the reasoner's own: the same batches in the same order
    give the same answers.
    """

    def __init__(self, model: ACTModel, halt: str = "max", graph: Graph | None = None):
        assert halt in HALTING and (halt == "max" or graph is None), "a graph cannot hold a batch that shrinks"
        self._model, self._halt, self._graph = model, halt, graph
        self._draws = OwnDraws() if model.inner.draws else lambda device: nullcontext()
        self._data: Batch = {}
        self._state: Any = None
        self._outputs: list[Tensor] = []  # logits, Q(halt), Q(continue)

    @torch.inference_mode()
    def steps(self, batch: Batch, max_steps: int | None = None) -> Iterator[Step]:
        """Yield the steps of a batch from the initial state, at most `max_steps` (default: as in training).

        If a graph runs, the tensors of a step are overwritten by the next one.
        """
        model, inner = self._model, self._model.inner
        size, device = batch["inputs"].shape[0], batch["inputs"].device
        max_steps = model.config.halt_max_steps if max_steps is None else max_steps
        model.eval()
        with self._draws(device):
            start = inner.initial_state(size)
        self._begin({name: batch[name] for name in ("inputs", "puzzle_identifiers")}, start)
        rows = torch.arange(size, device=device)
        for number in range(1, max_steps + 1):
            with self._draws(device):
                self._advance()
            logits, q_halt, q_continue = self._outputs
            wants = model.wants_to_halt(q_halt, q_continue)
            last = torch.full_like(wants, number == max_steps)
            if self._halt == "q":
                last = last | wants
            yield Step(number, rows, logits, q_halt, q_continue, self._state, wants, last)
            if self._halt == "q" and last.any():
                if last.all():
                    return
                rows = rows[~last]
                self._state = map_tensors(lambda tensor, stay=~last: tensor[stay], self._state)
                self._data = {name: field[~last] for name, field in self._data.items()}

    @torch.inference_mode()
    def run(self, batch: Batch, real: int, by_step: bool = False) -> Finished:
        """Run all steps of a batch whose first `real` rows are examples; with `by_step`, keep every step's answer.

        The rule `max` runs padding too, like the original, so that q_halt_loss counts it. The rule `q` drops padding
        before the first step, and the result has `real` rows. If a graph runs, the next batch overwrites `outputs`.
        """
        if self._halt == "q":
            batch = _first_rows(batch, max(1, real))  # kernels refuse an empty batch
        (size, seq_len), device = batch["inputs"].shape, batch["inputs"].device
        max_steps = self._model.config.halt_max_steps
        taken = torch.full((size,), max_steps, dtype=torch.int32, device=device)
        answers = torch.empty(size, max_steps, seq_len, dtype=torch.uint8, device=device) if by_step else None
        outputs: dict[str, Tensor] = {}
        at_halt = Halted({}, taken.clone()) if self._halt == "max" else None
        for step in self.steps(batch):
            if answers is not None:
                answers[step.rows, step.number - 1 :] = step.answer.to(torch.uint8).unsqueeze(1)
            now = {"logits": step.logits, "q_halt_logits": step.q_halt, "q_continue_logits": step.q_continue}
            if at_halt is not None:
                outputs = now
                going_on = at_halt.steps >= step.number  # rows that had not wanted to halt before this step
                kept = at_halt.outputs or now
                at_halt.outputs = {key: where_rows(going_on, now[key], kept[key]) for key in now}
                at_halt.steps = torch.where(going_on & step.wants_to_halt, step.number, at_halt.steps)
            elif step.last.any():
                leaving = step.rows[step.last]
                taken[leaving] = step.number
                for key, value in now.items():
                    place = outputs.setdefault(key, value.new_empty(size, *value.shape[1:]))
                    place[leaving] = value[step.last]
        if self._halt == "q" and real == 0:
            batch, outputs, taken = _first_rows(batch, 0), _first_rows(outputs, 0), taken[:0]
        return Finished(batch, outputs, taken, at_halt, answers)

    def _begin(self, data: Batch, state: Any) -> None:
        if self._graph is None or not self._data:  # a graph works on the same tensors each time
            self._data = {name: field.clone() for name, field in data.items()}
            self._state = map_tensors(lambda tensor: tensor.clone(memory_format=torch.contiguous_format), state)
            return
        map_tensors(lambda mine, new: mine.copy_(new), self._data, data)
        map_tensors(lambda mine, new: mine.copy_(new), self._state, state)

    def _advance(self) -> None:
        if self._graph is None:
            self._state, *self._outputs = self._model.advance(self._state, self._data)
        elif self._graph.ready(self._advance_in_place):
            self._graph.replay()
        else:
            self._advance_in_place()

    def _advance_in_place(self) -> None:
        state, *self._outputs = self._model.advance(self._state, self._data)
        map_tensors(lambda mine, new: mine.copy_(new), self._state, state)


def reasoning_steps(
    model: ACTModel, inputs: Tensor, puzzle_identifiers: Tensor, max_steps: int | None = None, halt: str = "max"
) -> Iterator[Step]:
    """Yield `max_steps` steps (default: as in training), which may be more than in training, of all sequences; with
    halt=q only of those that the model has not wanted to halt before.

    inputs (B, S) and puzzle_identifiers (B,) are integers on the model's device.
    """
    return Reasoner(model, halt).steps({"inputs": inputs, "puzzle_identifiers": puzzle_identifiers}, max_steps)


def _first_rows(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: tensor[:count] for name, tensor in tensors.items()}
