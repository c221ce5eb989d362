"""Runs a model over an evaluation split and keeps what was asked for. For halting, see training/reasoning.py."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from models.losses import ACTLossHead, measure
from puzzle_dataset import PuzzleDataset
from training.calibration import calibration_error, confidence_bins
from training.cuda_graph import Graph, uses_graph
from training.distributed import Ranks
from training.generators import no_draws
from training.metrics import eval_metrics, progress_bar, reduce_metrics
from training.predictions import PredictionWriter
from training.reasoning import Finished, Reasoner, are_numbers

log = logging.getLogger(__name__)

# In an evaluation batch on one GPU: a Sudoku takes 82 of them, a maze or an ARC grid 901. The bound is fixed, so that
# all GPUs compute the same; at the published sizes a step then takes about 2 GB.
TOKENS = 128 * 1024


def choose_batch_size(
    wanted: int | None, dataset: PuzzleDataset, head: ACTLossHead, ranks: Ranks, device: torch.device
) -> None:
    """Set an evaluation split's batch size over all ranks: `wanted`, else the run's or, on CUDA, a larger one."""
    if wanted is None and device.type == "cuda":
        share = -(-dataset.num_examples() // ranks.world_size)  # more rows would be padding
        wanted = rows_at_a_time(head.model.inner.positions, dataset.local_batch_size, share) * ranks.world_size
        log.info("evaluating %d puzzles at a time", wanted)
    if wanted is not None:
        dataset.set_batch_size(wanted)


def fitting(wanted: int, dataset: PuzzleDataset, ranks: Ranks) -> int:
    """`wanted` rows at a time over all ranks, or as many as the largest set holds: more would be padding."""
    most = min(max(len(puzzles.inputs) for puzzles in dataset.sets.values()), dataset.config.max_examples or wanted)
    return min(wanted, max(1, -(-most // ranks.world_size)) * ranks.world_size)


def rows_at_a_time(positions: int, at_least: int, at_most: int) -> int:
    """Rows of a batch on one GPU: a multiple of 8, or `at_least`, which training has room for."""
    rows = min(TOKENS // positions, -(-at_most // 8) * 8)
    return max(at_least, rows // 8 * 8)


def evaluate_split(
    head: ACTLossHead,
    dataset: PuzzleDataset,
    ranks: Ranks,
    device: torch.device,
    save_outputs: list[str],
    *,
    halt: str = "max",
    cuda_graph: str = "auto",
    writer: PredictionWriter | None = None,
    leave_bar: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """-> (`eval/…` metrics, on rank 0 only; this rank's `save_outputs`, on the CPU).

    `eval/ece` is the error of the model's confidence (training/calibration.py). With halt=max, `eval/halt_q/…` is what
    the rule `q` would have given, from the same pass; saved outputs and `eval/q_halt_loss` include padding rows, as in
    the original. With halt=q neither includes them. `writer` gets the predictions batch by batch. `after_batch` may
    raise an exception to leave early.
    """
    if dataset.num_examples() == 0:
        raise UserError(f"{dataset.config.dataset_path}/{dataset.split} holds no examples to evaluate")
    totals, saved = _Totals(), defaultdict(list)
    head.eval()
    batches = progress_bar(
        dataset.test_batches(),
        total=dataset.num_test_batches(),
        desc="evaluate",
        unit="batch",
        enabled=ranks.is_main,
        leave=leave_bar,
    )
    by_step = writer is not None and "answers_by_step" in writer.row_types
    graphed = uses_graph(cuda_graph, device) and halt == "max"
    reasoner = Reasoner(head.model, halt, Graph("a reasoning step") if graphed else None)
    # The first batch shows whether a network draws without saying so; what records a graph is left alone.
    watched = not (graphed or head.model.inner.draws)
    with torch.inference_mode():
        for set_name, batch, examples in batches:
            batch = {name: field.to(device) for name, field in batch.items()}
            with no_draws(type(head.model.inner).__name__) if watched else nullcontext():
                done = reasoner.run(batch, len(examples), by_step)
            watched = False
            totals.add(set_name, done, head)
            for key, value in (done.data | done.outputs).items():
                if key in save_outputs:
                    saved[key].append(value.cpu())
            if writer is not None:
                writer.append({"examples": examples} | compact_rows(done, len(examples), writer.row_types))
            after_batch()
    return totals.metrics(ranks), {key: torch.cat(parts) for key, parts in saved.items()}


class _Totals:
    """What is summed over the batches of a split, on the device."""

    def __init__(self):
        self._sums: dict[str, dict[str, Tensor]] = {}  # of metrics, by set
        self._bins: dict[tuple[str, str], Tensor] = {}  # of confidence, by set and rule

    def add(self, set_name: str, done: Finished, head: ACTLossHead) -> None:
        """A batch of a set: its metrics and confidences, by either rule of halting that it was run for."""
        halted = torch.ones_like(done.steps, dtype=torch.bool)
        _, metrics = head.score(done.outputs, done.data["labels"], done.steps, halted)
        rules = {"": (done.outputs, done.steps)}
        if done.at_halt is not None:
            rules["halt_q/"] = (done.at_halt.outputs, done.at_halt.steps)
        for rule, (outputs, steps) in rules.items():
            measured, exact, labelled = measure(outputs, done.data["labels"], steps, halted)
            metrics |= {f"{rule}{key}": value for key, value in measured.items() if rule and key != "count"}
            counted = confidence_bins(outputs["q_halt_logits"], exact, labelled > 0)
            before = self._bins.get((set_name, rule))
            self._bins[set_name, rule] = counted if before is None else before + counted
        before = self._sums.get(set_name)
        self._sums[set_name] = {key: before[key] + value for key, value in metrics.items()} if before else metrics

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """`eval/…` over all ranks, on rank 0 only. All ranks call it."""
        reduced = {name: reduce_metrics(metrics, ranks) for name, metrics in self._sums.items()}
        errors = {key: ranks.sum_to_main(counted).cpu() for key, counted in self._bins.items()}
        return eval_metrics(reduced) | calibration_metrics(errors)


def calibration_metrics(bins: dict[tuple[str, str], Tensor]) -> dict[str, float]:
    """`eval/ece` of the sets together, and of each if there are several; by set and prefix of the rule."""
    sets, rules = (dict.fromkeys(part) for part in zip(*bins, strict=True))
    found = {f"eval/{rule}ece": sum(bins[name, rule] for name in sets) for rule in rules}
    if len(sets) > 1:
        found |= {f"eval/{name}/{rule}ece": counted for (name, rule), counted in bins.items()}
    return {key: calibration_error(counted) for key, counted in found.items()}


def compact_rows(done: Finished, real: int, fields: Collection[str]) -> dict[str, np.ndarray]:
    """What a `PredictionWriter` writes for the first `real` rows; tokens leave the device as bytes.

    The logits, which would show it, are not among them: a row without an answer has NaN in place of Q(halt).
    """
    logits, q_halt, q_continue = (done.outputs[key][:real] for key in ("logits", "q_halt_logits", "q_continue_logits"))
    numbers = are_numbers(logits, q_halt, q_continue)
    rows = {"q_halt_logits": torch.where(numbers, q_halt, torch.nan), "q_continue_logits": q_continue}
    rows |= {"answers": logits.argmax(-1).to(torch.uint8), "steps": done.steps[:real]}
    if "answers_by_step" in fields:
        rows["answers_by_step"] = done.answers_by_step[:real]
    if "logits" in fields:
        rows["logits"] = logits.float()
    return {key: value.cpu().numpy() for key, value in rows.items()}
