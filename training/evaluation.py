"""Runs a model over an evaluation split, by one of two rules of halting, and keeps what was asked for.

max   every sequence takes `halt_max_steps` steps, as in the original
q     a sequence stops when Q(halt) > Q(continue) and leaves the batch: steps that are saved are time that is saved
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from models.hrm.hrm_act_v1 import Carry, InnerCarry
from models.losses import ACTLossHead
from puzzle_dataset import Batch, PuzzleDataset
from training.distributed import Ranks
from training.metrics import eval_metrics, reduce_metrics
from training.predictions import PredictionWriter
from training.progress import progress_bar

HALTING = ("max", "q")


def evaluate_split(
    head: ACTLossHead,
    dataset: PuzzleDataset,
    ranks: Ranks,
    device: torch.device,
    save_outputs: list[str],
    *,
    halt: str = "max",
    writer: PredictionWriter | None = None,
    leave_bar: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """-> (`eval/…` metrics, on rank 0 only; this rank's `save_outputs`, on the CPU).

    With halt=max saved outputs and `eval/q_halt_loss` include padding rows, as in the original; with halt=q neither
    does. `writer` gets the predictions batch after batch. `after_batch` may raise to leave early.
    """
    if dataset.num_examples() == 0:
        raise UserError(f"{dataset.config.dataset_path}/{dataset.split} holds no examples to evaluate")
    sums: dict[str, dict[str, Tensor]] = {}
    saved = defaultdict(list)
    head.eval()
    batches = progress_bar(
        dataset,
        total=dataset.num_test_batches(),
        desc="evaluate",
        unit="batch",
        enabled=ranks.is_main,
        leave=leave_bar,
    )
    by_step = writer is not None and "answers_by_step" in writer.row_types
    with torch.inference_mode():
        for (set_name, batch, _), examples in zip(batches, dataset.test_examples(), strict=True):
            batch = {name: field.to(device) for name, field in batch.items()}
            done = run_to_the_end(head, batch, len(examples), halt, by_step)
            metrics = head.score(done.carry, done.outputs).metrics
            before = sums.get(set_name)
            sums[set_name] = {key: before[key] + value for key, value in metrics.items()} if before else metrics
            for key, value in (done.carry.current_data | done.outputs).items():
                if key in save_outputs:
                    saved[key].append(value.cpu())
            if writer is not None:
                writer.append({"examples": examples} | compact_rows(done, len(examples), writer.row_types))
            after_batch()
    reduced = {name: reduce_metrics(metrics, ranks) for name, metrics in sums.items()}
    return eval_metrics(reduced), {key: torch.cat(parts) for key, parts in saved.items()}


@dataclass
class Finished:
    """A batch, each row as it was after its own last step."""

    carry: Carry  # without the inner states
    outputs: dict[str, Tensor]  # logits (B, S, vocab), q_halt_logits, q_continue_logits (B,)
    answers_by_step: Tensor | None  # (B, halt_max_steps, S) uint8: a row's last answer repeats


def run_to_the_end(head: ACTLossHead, batch: Batch, real: int, halt: str, by_step: bool = False) -> Finished:
    """Step until every row has halted. The first `real` rows are examples, the rest is padding.

    With halt=q padding is dropped before the first step, the result has `real` rows, and no loss counts padding; the
    original's rule runs padding too, and its q_halt_loss counts it.
    """
    if halt == "q":
        batch = _first_rows(batch, max(1, real))  # kernels refuse an empty batch
    model, (size, seq_len) = head.model, batch["inputs"].shape
    carry, data = model.initial_carry(batch), batch
    rows = torch.arange(size, device=carry.steps.device)  # those of the batch that the carry still holds
    steps, last = torch.zeros_like(carry.steps), {}
    answers = rows.new_empty(size, model.config.halt_max_steps, seq_len, dtype=torch.uint8) if by_step else None
    for step in count(1):
        carry, outputs = model(carry=carry, batch=data)
        if answers is not None:
            answers[rows, step - 1 :] = outputs["logits"].argmax(-1).to(torch.uint8).unsqueeze(1)
        halted = carry.halted
        if halt == "q":
            halted = halted | (outputs["q_halt_logits"] > outputs["q_continue_logits"])
        if halted.any():
            finished = rows[halted]
            steps[finished] = step
            for key, value in outputs.items():
                last.setdefault(key, value.new_empty(size, *value.shape[1:]))[finished] = value[halted]
            if halted.all():
                break
            carry, rows = _select(carry, ~halted), rows[~halted]
        data = carry.current_data
    real = real if halt == "q" else size
    halted = torch.ones(real, dtype=torch.bool, device=rows.device)
    carry = Carry(None, steps[:real], halted, _first_rows(batch, real))
    return Finished(carry, _first_rows(last, real), answers)


def _first_rows(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: tensor[:count] for name, tensor in tensors.items()}


def _select(carry: Carry, rows: Tensor) -> Carry:
    inner = InnerCarry(carry.inner_carry.z_H[rows], carry.inner_carry.z_L[rows])
    data = {name: field[rows] for name, field in carry.current_data.items()}
    return Carry(inner, carry.steps[rows], carry.halted[rows], data)


def compact_rows(done: Finished, real: int, fields: Collection[str]) -> dict[str, np.ndarray]:
    """What predictions.PredictionWriter writes of the first `real` rows; tokens leave the device as bytes."""
    logits = done.outputs["logits"][:real]
    rows = {key: done.outputs[key][:real] for key in ("q_halt_logits", "q_continue_logits")}
    rows |= {"answers": logits.argmax(-1).to(torch.uint8), "steps": done.carry.steps[:real]}
    if "answers_by_step" in fields:
        rows["answers_by_step"] = done.answers_by_step[:real]
    if "logits" in fields:
        rows["logits"] = logits.float()
    return {key: value.cpu().numpy() for key, value in rows.items()}
