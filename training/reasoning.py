"""A batch from its first reasoning step to its last, by one of two rules of halting.

max   every sequence takes `halt_max_steps` steps, as in the original: the device is never asked anything in between
q     a sequence stops when it wants to and leaves the batch: steps that are saved are time that is saved
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from models.hrm.hrm_act_v1 import Carry, HierarchicalReasoningModel_ACTV1, InnerCarry
from puzzle_dataset import Batch
from training.cuda_graph import Graph

HALTING = ("max", "q")


@dataclass
class Finished:
    """A batch, each row as it was after its own last step."""

    carry: Carry  # without the inner states
    outputs: dict[str, Tensor]  # logits (B, S, vocab), q_halt_logits, q_continue_logits (B,)
    answers_by_step: Tensor | None  # (B, halt_max_steps, S) uint8: a row's last answer repeats


class AllSteps:
    """The rule `max`, for batches that all have the same shape; padding is run too, and its q_halt_loss counts it."""

    def __init__(self, model: HierarchicalReasoningModel_ACTV1, graph: Graph | None = None):
        self._model, self._graph = model, graph
        self._batch: Batch | None = None
        self._carry: Carry | None = None
        self._outputs: dict[str, Tensor] = {}

    def run(self, batch: Batch, by_step: bool = False) -> Finished:
        """Where a graph runs, `outputs` are overwritten by the next batch."""
        size, seq_len = batch["inputs"].shape
        max_steps = self._model.config.halt_max_steps
        answers = batch["inputs"].new_empty(size, max_steps, seq_len, dtype=torch.uint8) if by_step else None
        for number, outputs in enumerate(self._steps(batch, max_steps)):
            if answers is not None:
                answers[:, number] = outputs["logits"].argmax(-1)
        return Finished(Carry(None, self._carry.steps, self._carry.halted, batch), outputs, answers)

    def _steps(self, batch: Batch, max_steps: int) -> Iterator[dict[str, Tensor]]:
        if self._batch is None:
            self._batch = {name: field.clone() for name, field in batch.items()}
            self._carry = self._model.initial_carry(batch)
        for name, field in batch.items():
            self._batch[name].copy_(field)
        self._carry.halted.fill_(True)  # every row starts afresh, with the batch's data
        for _ in range(max_steps):
            if self._graph is not None and self._graph.ready(self._step):
                self._graph.replay()
            else:
                self._step()
            yield self._outputs

    def _step(self) -> None:
        carry, self._outputs = self._model(carry=self._carry, batch=self._batch)
        self._carry.copy_(carry)


def until_all_halt(model: HierarchicalReasoningModel_ACTV1, batch: Batch, real: int, by_step: bool = False) -> Finished:
    """The rule `q`. The first `real` rows are examples; the rest, padding, is dropped before the first step, the result
    has `real` rows, and no loss counts padding."""
    batch = _first_rows(batch, max(1, real))  # kernels refuse an empty batch
    size, seq_len = batch["inputs"].shape
    carry, data = model.initial_carry(batch), batch
    rows = torch.arange(size, device=carry.steps.device)  # those of the batch that the carry still holds
    steps, last = torch.zeros_like(carry.steps), {}
    answers = rows.new_empty(size, model.config.halt_max_steps, seq_len, dtype=torch.uint8) if by_step else None
    for step in count(1):
        carry, outputs = model(carry=carry, batch=data)
        if answers is not None:
            answers[rows, step - 1 :] = outputs["logits"].argmax(-1).to(torch.uint8).unsqueeze(1)
        halted = carry.halted | model.wants_to_halt(outputs["q_halt_logits"], outputs["q_continue_logits"])
        if halted.any():
            finished = rows[halted]
            steps[finished] = step
            for key, value in outputs.items():
                last.setdefault(key, value.new_empty(size, *value.shape[1:]))[finished] = value[halted]
            if halted.all():
                break
            carry, rows = _select(carry, ~halted), rows[~halted]
        data = carry.current_data
    carry = Carry(None, steps[:real], torch.ones_like(steps[:real], dtype=torch.bool), _first_rows(batch, real))
    return Finished(carry, _first_rows(last, real), answers)


def _first_rows(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: tensor[:count] for name, tensor in tensors.items()}


def _select(carry: Carry, rows: Tensor) -> Carry:
    inner = InnerCarry(carry.inner_carry.z_H[rows], carry.inner_carry.z_L[rows])
    data = {name: field[rows] for name, field in carry.current_data.items()}
    return Carry(inner, carry.steps[rows], carry.halted[rows], data)
