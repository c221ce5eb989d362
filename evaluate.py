"""Evaluate a checkpoint: python evaluate.py checkpoint=<run>/step_<n> [key=value …], or under torchrun.

    data_path=…           another dataset than the run's         split=test
    max_examples=…        a seeded subset                        global_batch_size=…   default: the run's, on CUDA more
    halt=max              all sequences take all steps, as in the original; q: each stops when Q(halt) > Q(continue)
    max_steps=…           reasoning steps, also more than trained; default: the run's arch.halt_max_steps
    save_format=compact   step_<n>_preds/, see training/predictions.py; torch: the original's dictionaries,
                          step_<n>_all_preds.<rank>; none
    save_logits=false     for compact: also the logits           save_steps=false      also the answer of every step
    save_outputs=[…]      for torch, and chooses it: among inputs, labels, puzzle_identifiers, logits, q_halt_logits,
                          q_continue_logits; default: all; [] is save_format=none
    output_dir=…          of predictions; default: the run folder
    device=auto           auto, cuda, mps or cpu                 compile=auto          on or off; off with halt=q
    cuda_graph=auto       on or off

Reads `all_config.yaml` beside the checkpoint; prints a table: the metrics, of which `eval/steps` is the mean number of
steps, and the puzzles per second over all ranks, after one untimed step. Checkpoints of the original load too.
"""

import training.threads  # noqa: F401, before torch loads

# isort: split

import os
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from errors import UserError, one_line_errors
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset
from training.compilation import EVALUATION, compile_blocks
from training.config import SAVABLE_OUTPUTS, PretrainConfig, StrictModel, from_cli, load_config
from training.data import open_split
from training.distributed import DEVICES, Ranks, select_device
from training.evaluation import choose_batch_size, evaluate_split
from training.predictions import MAX_STEPS, PredictionWriter
from training.progress import start_logging
from training.reasoning import HALTING
from training.torch_predictions import save_predictions, torch_path, torch_paths
from training.weights import load_model


class EvalConfig(StrictModel):
    checkpoint: str
    data_path: str | None = None
    split: str = "test"
    max_examples: int | None = Field(default=None, ge=1)
    global_batch_size: int | None = Field(default=None, ge=1)
    halt: Literal[HALTING] = "max"
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    save_format: Literal["compact", "torch", "none"] | None = None  # None becomes what save_outputs says
    save_logits: bool = False
    save_steps: bool = False
    save_outputs: list[Literal[SAVABLE_OUTPUTS]] | None = None
    output_dir: str | None = None
    device: Literal[DEVICES] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    cuda_graph: Literal["auto", "on", "off"] = "auto"

    @model_validator(mode="after")
    def _keys_fit_together(self):
        if self.save_format is None:
            self.save_format = "compact" if self.save_outputs is None else "torch"
        if self.save_outputs == []:
            self.save_format = "none"
        if self.save_format == "compact" and self.save_outputs:
            raise ValueError("save_outputs chooses what save_format=torch saves; for compact there is save_logits=true")
        if self.save_format != "compact" and (self.save_logits or self.save_steps):
            raise ValueError("save_logits and save_steps need save_format=compact, the default without save_outputs")
        if self.compile == "on" and self.halt == "q":
            raise ValueError("compile=on needs halt=max: with halt=q the batch shrinks, each size would be compiled")
        return self

    def torch_outputs(self) -> list[str]:
        """What is kept in memory for save_format=torch."""
        return (self.save_outputs or list(SAVABLE_OUTPUTS)) if self.save_format == "torch" else []


def evaluate(config: EvalConfig, ranks: Ranks, device: torch.device) -> dict[str, float]:
    """-> `eval/…` metrics, on rank 0."""
    checkpoint = Path(config.checkpoint)
    run = load_config(str(checkpoint.parent / "all_config.yaml"))
    run.arch.halt_max_steps = config.max_steps or run.arch.halt_max_steps
    dataset = open_split(
        run,
        config.split,
        ranks,
        data_path=config.data_path,
        global_batch_size=config.global_batch_size,
        max_examples=config.max_examples,
    )
    prefix = Path(config.output_dir or checkpoint.parent) / checkpoint.name
    if config.save_format != "none":
        make_writable(prefix.parent)
    torch.manual_seed(run.seed + ranks.rank)
    head = load_model(checkpoint, run, dataset.metadata, batch_size=dataset.local_batch_size, device=device)
    choose_batch_size(config.global_batch_size, dataset, head, ranks, device)
    writer = open_writer(config, prefix, run, dataset, ranks) if config.save_format == "compact" else nullcontext()
    compile_mode = "off" if config.halt == "q" else config.compile
    reasoning_steps = dataset.num_test_batches() * run.arch.halt_max_steps
    compile_blocks(head, compile_mode, device, EVALUATION * reasoning_steps, dataset.local_batch_size)

    with writer as writer:
        warm_up(head, dataset, device)
        ranks.barrier()
        start = time.perf_counter()
        metrics, saved = evaluate_split(
            head, dataset, ranks, device, config.torch_outputs(), halt=config.halt, cuda_graph=config.cuda_graph,
            writer=writer, leave_bar=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    if config.save_format == "torch":
        save_torch(prefix, saved, ranks)
    if ranks.is_main:
        print(table(config, run, dataset, metrics, seconds))
        if config.save_format != "none":
            print(f"predictions: {writer.place if writer else torch_path(prefix, 0).with_suffix('.*')}")
    return metrics


def make_writable(folder: Path) -> None:
    """Make the folder; said before the work starts, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"cannot write predictions to {folder}; set output_dir, or save_format=none")


def open_writer(
    config: EvalConfig, prefix: Path, run: PretrainConfig, dataset: PuzzleDataset, ranks: Ranks
) -> PredictionWriter:
    return PredictionWriter(
        prefix,
        dataset,
        ranks,
        checkpoint=config.checkpoint,
        halt=config.halt,
        max_steps=run.arch.halt_max_steps,
        logits=config.save_logits,
        answers_by_step=config.save_steps,
    )


def save_torch(prefix: Path, saved: dict[str, torch.Tensor], ranks: Ranks) -> None:
    save_predictions(prefix.parent, prefix.name, ranks.rank, saved)
    if ranks.is_main:
        for rank, path in torch_paths(prefix).items():
            if rank >= ranks.world_size:
                path.unlink()  # of an evaluation by more ranks: it would be read as a part of this one


def warm_up(head: ACTLossHead, dataset: PuzzleDataset, device: torch.device) -> None:
    """One step of the first batch, so that what is set up on first use is not timed."""
    head.eval()
    with torch.inference_mode():
        for _, batch, _ in islice(dataset, 1):
            batch = {name: field.to(device) for name, field in batch.items()}
            head(carry=head.initial_carry(batch), batch=batch).loss.item()  # waits for the device


def table(
    config: EvalConfig, run: PretrainConfig, dataset: PuzzleDataset, metrics: dict[str, float], seconds: float
) -> str:
    examples, width = dataset.num_examples(), max(map(len, metrics))
    rows = [f"{key:<{width}}  {value:.4f}" for key, value in metrics.items()]
    return "\n".join(
        [
            f"{dataset.config.dataset_path}/{dataset.split}: {examples} examples, "
            f"halt={config.halt}, max_steps={run.arch.halt_max_steps}",
            *rows,
            f"{'puzzles/s':<{width}}  {examples / seconds:.1f}",
        ]
    )


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
