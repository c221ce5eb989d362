"""Batches on their way to the device: python -m pytest tests/test_data.py"""

import threading

import pytest
import torch

from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig, widen
from tests.runs import PIPELINE
from training.data import BATCHES_AHEAD, read_ahead, train_batches_on

CPU = torch.device("cpu")


def open_train() -> PuzzleDataset:
    options = dict(seed=3, global_batch_size=12, test_set_mode=False, epochs_per_iter=10, rank=0, num_replicas=1)
    return PuzzleDataset(PuzzleDatasetConfig(dataset_path=str(PIPELINE / "dataset"), **options), "train")


def test_batches_are_those_of_the_dataset_also_when_read_ahead():
    dataset, sent, ahead = open_train(), open_train(), open_train()
    for passes in range(2):
        expected = [batch for _, batch, _ in dataset]
        assert len(expected) == 10 * 40 // 12
        read = (widen(rows, ahead.metadata) for _, rows in read_ahead(ahead.train_batches(passes), CPU))
        for batches in (train_batches_on(CPU, sent, passes, 0), read):
            for batch, other in zip(batches, expected, strict=True):
                assert all(torch.equal(batch[field], other[field]) for field in other)


def test_reading_ahead_is_bounded_and_ends_with_the_loop():
    made = []

    def items():
        for number in range(1000):
            made.append((number, threading.current_thread().name))
            yield number

    stream = read_ahead(items(), CPU)
    assert [next(stream) for _ in range(5)] == list(range(5))
    stream.close()
    assert 5 <= len(made) <= 5 + BATCHES_AHEAD
    assert all(name.startswith("read-ahead") for _, name in made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_an_error_while_reading_ahead_arrives_after_the_batches_before_it():
    def items():
        yield from range(3)
        raise OSError("stale file handle")

    stream = read_ahead(items(), CPU)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="stale file handle"):
        next(stream)
