"""Which splits a run opens, and how their batches come to the device."""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from errors import UserError
from puzzle_dataset import Batch, PuzzleDataset, PuzzleDatasetConfig, widen
from training.config import PretrainConfig
from training.distributed import Ranks
from training.memory import check_available
from training.step import total_steps

log = logging.getLogger(__name__)
T = TypeVar("T")
BATCHES_AHEAD = 8


def open_datasets(
    config: PretrainConfig, ranks: Ranks
) -> tuple[PuzzleDataset, PuzzleDataset | None, PuzzleDataset | None]:
    """Open the training split, the split evaluated during training, and the whole test split if that is another one.

    A dataset without a test split, or without an answer in it, is not tested and, if it has no split `val` either, not
    evaluated. Raises `UserError` if the splits do not fit together, or give a run without a step.
    """
    epochs_per_pass = config.epochs_per_pass
    train_data = open_split(config, "train", ranks, epochs_per_iter=epochs_per_pass)
    # Every epoch of a pass is a permutation of the groups, int32, and their concatenation.
    order, host = 8 * epochs_per_pass * train_data.metadata.total_groups, torch.device("cpu")
    check_available(order, f"the order of {epochs_per_pass} epochs between evaluations", host, "lower eval_interval")
    steps, passes = total_steps(config, train_data.metadata), config.epochs // epochs_per_pass
    if steps < passes or not any(train_data.gives_a_batch(number) for number in range(passes)):
        raise UserError(
            f"{epochs_per_pass} epochs of {config.data_path} do not fill one batch of {config.global_batch_size} from "
            f"one set; lower global_batch_size, or raise epochs and eval_interval"
        )
    has_test, has_val = ((Path(config.data_path) / split).exists() for split in ("test", "val"))
    test_data = open_split(config, "test", ranks) if has_test else None
    if test_data is not None and not test_data.has_answers():  # all of its tasks are private
        test_data = None
    on_test, lacking = config.eval_split == "test", None
    if test_data is None:
        lacking = f"{config.data_path} has {'no answer in its' if has_test else 'no'} test split"
        if on_test and has_val:
            raise UserError(f"{lacking}; evaluate on its split val with eval_split=val")
    eval_data = test_data
    if not on_test or (test_data is not None and config.eval_max_examples is not None):
        eval_data = open_split(config, config.eval_split, ranks, max_examples=config.eval_max_examples)
    else:
        test_data = None  # it is evaluated whole during training
    if lacking is not None:
        log.warning("%s: %s", lacking, "nothing is evaluated" if on_test else "there will be no final test")
    for data in (eval_data, test_data):
        if data is not None:
            _check_fits(data, train_data)
    return train_data, eval_data, test_data


def _check_fits(data: PuzzleDataset, train_data: PuzzleDataset) -> None:
    """Raise `UserError` for a split that a model of the train split cannot take."""
    for key in ("vocab_size", "seq_len", "num_puzzle_identifiers", "pad_id", "ignore_label_id", "blank_identifier_id"):
        found, trained = (getattr(one.metadata, key) for one in (data, train_data))
        if found != trained:
            raise UserError(
                f"{data.config.dataset_path}: {key} is {found} in {data.split}/dataset.json and {trained} in "
                f"train/dataset.json; build the dataset again"
            )


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
    """Open a split of the run's dataset, or of another one, as this rank sees it. It is read in order unless
    `epochs_per_iter` says how many epochs a pass draws from it. Raises `UserError` for an empty one."""
    if Path(split).name != split:
        raise UserError(f"'{split}' is not the name of a split, such as train, test or val")
    dataset = PuzzleDataset(
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
    if not dataset.num_examples():
        raise UserError(f"{dataset.config.dataset_path}/{split} holds no examples; build it again, or name another")
    return dataset


def open_to_answer(
    run: PretrainConfig, split: str, *, data_path: str | None, batch_size: int, max_examples: int | None
) -> PuzzleDataset:
    """Open a split, in order and in one process, for a command that runs the model on it. `max_examples` chooses the
    same examples as in evaluate.py."""
    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        raise UserError("this command runs in one process; start it with python, not torchrun")
    batch_size = min(batch_size, max_examples or batch_size)
    return open_split(run, split, ranks, data_path=data_path, global_batch_size=batch_size, max_examples=max_examples)


def train_batches_on(device: torch.device, dataset: PuzzleDataset, passes: int, skip: int) -> Iterator[Batch]:
    """The batches of a pass, on the device. On CUDA a thread reads ahead, and bytes are copied from pinned memory."""
    batches = (rows for _, rows in dataset.train_batches(passes, skip))
    if device.type == "cuda":
        batches = read_ahead((pinned(rows) for rows in batches), device)
    for rows in batches:
        yield widen({name: field.to(device, non_blocking=True) for name, field in rows.items()}, dataset.metadata)


def read_ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yield the same items; a thread makes up to BATCHES_AHEAD of them before they are asked for.

    A thread is enough: numpy gathers rows without the interpreter's lock, and nothing has to pass between processes.
    """

    def set_device() -> None:  # pinning makes a context on the thread's own device
        if device.type == "cuda":
            torch.cuda.set_device(device)

    end = object()
    with ThreadPoolExecutor(1, "read-ahead", set_device) as reader:
        ahead = deque(reader.submit(next, items, end) for _ in range(BATCHES_AHEAD))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(reader.submit(next, items, end))
                yield item
        finally:
            for waiting in ahead:
                waiting.cancel()


def pinned(batch: Batch) -> Batch:
    return {name: field.pin_memory() for name, field in batch.items()}
