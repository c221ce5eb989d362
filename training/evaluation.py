"""Runs a model over an evaluation split, and keeps what was asked for."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from errors import UserError
from puzzle_dataset import Batch, PuzzleDataset
from training.distributed import Ranks
from training.metrics import eval_metrics, reduce_metrics
from training.progress import progress_bar
from training.run_folder import write_atomically


def evaluate_split(
    head: nn.Module,
    dataset: PuzzleDataset,
    ranks: Ranks,
    device: torch.device,
    save_outputs: list[str],
    *,
    leave_bar: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """-> (`eval/…` metrics, on rank 0 only; this rank's saved outputs, padding rows included, on the CPU).

    `after_batch` may raise to leave early.
    """
    if dataset.num_examples() == 0:
        raise UserError(f"{dataset.config.dataset_path}/{dataset.split} holds no examples to evaluate")
    sums: dict[str, dict[str, Tensor]] = {}
    saved = defaultdict(list)
    head.eval()
    batches = progress_bar(
        DataLoader(dataset, batch_size=None, generator=torch.Generator()),
        total=dataset.num_test_batches(),
        desc="evaluate",
        unit="batch",
        enabled=ranks.is_main,
        leave=leave_bar,
    )
    with torch.inference_mode():
        for set_name, batch, _ in batches:
            batch = {name: field.to(device) for name, field in batch.items()}
            metrics, outputs = run_to_the_end(head, batch, save_outputs)
            before = sums.get(set_name)
            sums[set_name] = {key: before[key] + value for key, value in metrics.items()} if before else metrics
            for key, value in (batch | outputs).items():
                if key in save_outputs:
                    saved[key].append(value.cpu())
            after_batch()
    reduced = {name: reduce_metrics(metrics, ranks) for name, metrics in sums.items()}
    return eval_metrics(reduced), {key: torch.cat(parts) for key, parts in saved.items()}


def run_to_the_end(
    head: nn.Module, batch: Batch, return_keys: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Step until every sequence has halted; -> the last step's metrics and outputs."""
    carry = head.initial_carry(batch)
    while True:
        out = head(carry=carry, batch=batch, return_keys=return_keys)
        if out.all_finished:
            return out.metrics, out.outputs
        carry = out.carry


def save_predictions(folder: Path, step_name: str, rank: int, saved: dict[str, Tensor]) -> Path:
    """Write `<step_name>_all_preds.<rank>`: a dictionary of tensors, as the original does."""
    path = folder / f"{step_name}_all_preds.{rank}"
    write_atomically(path, lambda file: torch.save(saved, file))
    return path
