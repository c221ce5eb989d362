"""Evaluate a checkpoint: python evaluate.py checkpoint=<run>/step_<n> [key=value …], or under torchrun.

Reads `all_config.yaml` beside the checkpoint and prints a table: the metrics, of which `eval/steps` is the mean number
of steps, and the puzzles per second over all ranks, timed after one warm-up step. Checkpoints of the original load too.
"""

import training.launcher
import training.threads  # before torch loads

# isort: split

import sys
import time
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from errors import one_line_errors
from files import check_writable
from models.losses import ACTLossHead
from puzzle_dataset import PuzzleDataset
from training.checkpoints import beside, find_checkpoint, load_model, open_run
from training.compilation import EVALUATION, compile_blocks
from training.config import SAVABLE_OUTPUTS, PretrainConfig
from training.data import open_split
from training.distributed import DEVICES, Ranks, select_device
from training.evaluation import choose_batch_size, evaluate_split, fitting
from training.metrics import start_logging
from training.options import StrictModel, from_cli
from training.predictions import MAX_STEPS, PredictionWriter, writing_predictions
from training.reasoning import HALTING
from training.torch_predictions import save_torch, torch_path


class EvalConfig(StrictModel):
    checkpoint: str = Field(description="a step_<n> in its run folder, or the folder: its best, else its last")
    data_path: str | None = Field(default=None, description="a dataset other than the run's")
    split: str = Field(default="test", description="split of the dataset")
    max_examples: int | None = Field(default=None, ge=1, description="size of a seeded subset of each set")
    global_batch_size: int | None = Field(
        default=None, ge=1, description="sequences at a time, over all ranks; null: the run's, on CUDA more"
    )
    halt: Literal[HALTING] = Field(
        default="max",
        description="max: all sequences take all steps, as in the original; q: each stops when the model wants to halt",
    )
    max_steps: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="reasoning steps, even more than trained; null: as in training"
    )
    save_format: Literal["compact", "torch", "none"] | None = Field(
        default=None,
        description="of predictions; compact (the default): step_<n>_preds/, see training/predictions.py; torch: the "
        "original's dictionaries, step_<n>_all_preds.<rank>; none: nothing is saved",
    )
    save_logits: bool = Field(default=False, description="with compact: the logits too")
    save_steps: bool = Field(default=False, description="with compact: the answer of every step too")
    save_outputs: list[Literal[SAVABLE_OUTPUTS]] | None = Field(
        default=None,
        description=f"which outputs torch saves (and implies it): some of {', '.join(SAVABLE_OUTPUTS)}; null: all",
    )
    output_dir: str | None = Field(default=None, description="folder for predictions; null: the run's")
    device: Literal[DEVICES] = Field(default="auto", description="auto, cuda, mps or cpu")
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="torch.compile; off with halt=q")
    cuda_graph: Literal["auto", "on", "off"] = Field(default="auto", description="launch a step as one CUDA graph")

    @model_validator(mode="after")
    def _keys_fit_together(self):
        if self.save_outputs == []:
            raise ValueError("save_outputs names at least one output; to save nothing give save_format=none")
        if self.save_format is None:
            self.save_format = "compact" if self.save_outputs is None else "torch"
        if self.save_format != "torch" and self.save_outputs:
            raise ValueError("save_outputs chooses what save_format=torch saves; for compact there is save_logits=true")
        if self.save_format != "compact" and (self.save_logits or self.save_steps):
            raise ValueError("save_logits and save_steps need save_format=compact, the default without save_outputs")
        if self.compile == "on" and self.halt == "q":
            raise ValueError("compile=on needs halt=max: with halt=q each size of the shrinking batch is compiled")
        return self

    def torch_outputs(self) -> list[str]:
        """The outputs that are kept in memory for save_format=torch."""
        return (self.save_outputs or list(SAVABLE_OUTPUTS)) if self.save_format == "torch" else []


def evaluate_checkpoint(config: EvalConfig, ranks: Ranks, device: torch.device) -> dict[str, float]:
    """-> `eval/…` metrics, on rank 0."""
    # Once, since a run that goes on may soon mean another.
    name = ranks.from_main(lambda: find_checkpoint(config.checkpoint))
    checkpoint, run = open_run(name, config.data_path)
    config = config.model_copy(update={"checkpoint": str(checkpoint)})
    run.arch.halt_max_steps = config.max_steps or run.arch.halt_max_steps
    dataset = open_split(
        run,
        config.split,
        ranks,
        data_path=config.data_path,
        global_batch_size=config.global_batch_size,
        max_examples=config.max_examples,
    )
    wanted = None if config.global_batch_size is None else fitting(config.global_batch_size, dataset, ranks)
    if wanted is not None:
        dataset.set_batch_size(wanted)
    prefix = Path(config.output_dir or checkpoint.parent) / beside(checkpoint).name
    with ExitStack() as stack:
        if config.save_format != "none":
            check_writable(prefix.parent, "predictions", "set output_dir, or save_format=none", create=True)
            stack.enter_context(writing_predictions(prefix, ranks))
        torch.manual_seed(run.seed + ranks.rank)
        head = load_model(checkpoint, run, dataset.metadata, batch_size=dataset.local_batch_size, device=device)
        choose_batch_size(wanted, dataset, head, ranks, device)
        return evaluate_and_save(config, prefix, run, dataset, head, ranks, device)


def evaluate_and_save(
    config: EvalConfig,
    prefix: Path,
    run: PretrainConfig,
    dataset: PuzzleDataset,
    head: ACTLossHead,
    ranks: Ranks,
    device: torch.device,
) -> dict[str, float]:
    writer = open_writer(config, prefix, run, dataset, ranks) if config.save_format == "compact" else nullcontext()
    compile_mode = "off" if config.halt == "q" else config.compile
    reasoning_steps = dataset.num_test_batches() * run.arch.halt_max_steps
    compile_blocks(head.model, compile_mode, device, EVALUATION * reasoning_steps, dataset.local_batch_size)

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


def warm_up(head: ACTLossHead, dataset: PuzzleDataset, device: torch.device) -> None:
    """Run one step of the first batch, so that what is set up on first use is not timed."""
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
    if not dataset.has_answers():
        rows = ["no example has an answer: nothing is scored"]
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
        with training.launcher.watched(), ranks.connected(device):  # else the ranks of a killed torchrun go on
            evaluate_checkpoint(config, ranks, device)


if __name__ == "__main__":
    main()
