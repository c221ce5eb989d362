"""Which splits a run opens, and how their batches come to the device."""

import torch
from torch.utils.data import DataLoader

from errors import UserError
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig
from training.config import PretrainConfig
from training.distributed import Ranks
from training.preemption import leave_to_the_main_process
from training.state import total_steps


def open_datasets(config: PretrainConfig, ranks: Ranks) -> tuple[PuzzleDataset, PuzzleDataset, PuzzleDataset | None]:
    """The training split, what is evaluated while training goes on, and the whole test split where that is not it."""
    epochs_per_pass = config.eval_interval or config.epochs
    train_data = open_split(config, "train", ranks, epochs_per_iter=epochs_per_pass)
    if total_steps(config, train_data.metadata) * epochs_per_pass < config.epochs:
        raise UserError(
            f"{epochs_per_pass} epochs of {config.data_path} do not fill one batch of {config.global_batch_size}; "
            f"lower global_batch_size, or raise epochs and eval_interval"
        )
    eval_data = open_split(config, config.eval_split, ranks, max_examples=config.eval_max_examples)
    is_whole_test = config.eval_split == "test" and config.eval_max_examples is None
    return train_data, eval_data, None if is_whole_test else open_split(config, "test", ranks)


def open_split(
    run: PretrainConfig,
    split: str,
    ranks: Ranks,
    *,
    data_path: str | None = None,
    global_batch_size: int | None = None,
    max_examples: int | None = None,
    epochs_per_iter: int | None = None,
) -> PuzzleDataset:
    """A split of the run's dataset, or of another one, as this rank sees it; in order, unless `epochs_per_iter` says
    for how many epochs a pass draws from it."""
    return PuzzleDataset(
        PuzzleDatasetConfig(
            seed=run.seed,
            dataset_path=data_path or run.data_path,
            global_batch_size=global_batch_size or run.global_batch_size,
            test_set_mode=epochs_per_iter is None,
            epochs_per_iter=epochs_per_iter or 1,
            rank=ranks.rank,
            num_replicas=ranks.world_size,
            max_examples=max_examples,
        ),
        split,
    )


def open_loader(dataset: PuzzleDataset, device: torch.device) -> DataLoader:
    """On CUDA a process reads ahead; it is seeded apart from the model's generator."""
    ahead = device.type == "cuda"
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=int(ahead),
        prefetch_factor=8 if ahead else None,
        pin_memory=ahead,
        persistent_workers=ahead,
        generator=torch.Generator(),
        worker_init_fn=leave_to_the_main_process,
    )
