"""Evaluate a checkpoint: python evaluate.py checkpoint=<run>/step_<n> [key=value …], or under torchrun.

    data_path=…            another dataset than the run's          split=test
    save_outputs=[…]       among inputs, labels, puzzle_identifiers, logits, q_halt_logits, q_continue_logits
    global_batch_size=…    default: the run's                      max_examples=… a seeded subset
    device=auto            auto, cuda, mps or cpu                  output_dir=… default: the run folder

Reads `all_config.yaml` beside the checkpoint; prints a table; writes `step_<n>_all_preds.<rank>` where outputs are
saved. Checkpoints of the original load too.
"""

import os
import sys
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from errors import UserError, one_line_errors
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig
from training.compilation import compile_blocks
from training.config import SAVABLE_OUTPUTS, PretrainConfig, StrictModel, from_cli, load_config
from training.distributed import DEVICES, Ranks, select_device
from training.evaluation import evaluate_split, save_predictions
from training.progress import start_logging
from training.weights import load_model


class EvalConfig(StrictModel):
    checkpoint: str
    data_path: str | None = None
    split: str = "test"
    save_outputs: list[Literal[SAVABLE_OUTPUTS]] = Field(default=list(SAVABLE_OUTPUTS))
    global_batch_size: int | None = Field(default=None, ge=1)
    max_examples: int | None = Field(default=None, ge=1)
    device: Literal[DEVICES] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    output_dir: str | None = None


def evaluate(config: EvalConfig, ranks: Ranks, device: torch.device) -> dict[str, float]:
    """-> `eval/…` metrics, on rank 0."""
    checkpoint = Path(config.checkpoint)
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    dataset = open_split(config, run, ranks)
    folder = writable_folder(Path(config.output_dir or checkpoint.parent)) if config.save_outputs else None
    torch.manual_seed(run.seed + ranks.rank)
    head = load_model(checkpoint, run, dataset.metadata, batch_size=dataset.local_batch_size, device=device)
    compile_blocks(head, config.compile, device, steps=dataset.num_test_batches() * run.arch.halt_max_steps)

    metrics, saved = evaluate_split(head, dataset, ranks, device, config.save_outputs, leave_bar=True)
    if ranks.is_main:
        print(table(metrics, dataset))
    if folder is not None:
        path = save_predictions(folder, checkpoint.name, ranks.rank, saved)
        if ranks.is_main:
            print(f"predictions: {path.with_suffix('')}.*")
    return metrics


def writable_folder(folder: Path) -> Path:
    """Make the folder; said before the work starts, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"cannot write predictions to {folder}; set output_dir, or save_outputs=[]")
    return folder


def open_split(config: EvalConfig, run: PretrainConfig, ranks: Ranks) -> PuzzleDataset:
    global_batch_size = config.global_batch_size or run.global_batch_size
    return PuzzleDataset(
        PuzzleDatasetConfig(
            seed=run.seed,
            dataset_path=config.data_path or run.data_path,
            global_batch_size=global_batch_size,
            test_set_mode=True,
            epochs_per_iter=1,
            rank=ranks.rank,
            num_replicas=ranks.world_size,
            max_examples=config.max_examples,
        ),
        config.split,
    )


def table(metrics: dict[str, float], dataset: PuzzleDataset) -> str:
    width = max(map(len, metrics))
    rows = [f"{key:<{width}}  {value:.4f}" for key, value in metrics.items()]
    return "\n".join([f"{dataset.config.dataset_path}/{dataset.split}: {dataset.num_examples()} examples", *rows])


def main() -> None:
    with one_line_errors():
        config = from_cli(EvalConfig, sys.argv[1:], __doc__)
        ranks = Ranks.from_environment()
        device = select_device(config.device, ranks.local_rank)
        start_logging(ranks.is_main)
        ranks.connect(device)
        evaluate(config, ranks, device)
        ranks.close()


if __name__ == "__main__":
    main()
