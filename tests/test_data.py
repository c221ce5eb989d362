"""Batches on their way to the device: python -m pytest tests/test_data.py"""

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.format import SplitWriter
from errors import UserError
from puzzle_dataset import PuzzleDataset, widen
from tests.runs import PIPELINE, refusal
from tests.sample_datasets import describe_anew
from training.data import BATCHES_AHEAD, open_datasets, read_ahead, train_batches_on
from training.distributed import Ranks

CPU = torch.device("cpu")


def open_train() -> PuzzleDataset:
    return PuzzleDataset.alone(PIPELINE / "dataset", "train", 12, epochs_per_iter=10, seed=3)


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


def write_sets(folder: Path, **sets: list[list[int]]) -> Path:
    """A dataset whose train split has these sets, of groups of puzzles of so many examples, and whose test split is
    that of the reference run."""
    shutil.copytree(PIPELINE / "dataset", folder)
    train = folder / "train"
    shutil.rmtree(train)
    groups = [group for one in sets.values() for group in one]
    sizes = [size for group in groups for size in group]
    for name, one in sets.items():
        writer = SplitWriter(folder, f"train-{name}", seq_len=16, set_name=name)
        for group in one:
            rows = np.ones((sum(group), 16), np.uint8)
            ids = np.zeros(len(group), int)
            writer.append(rows, rows, puzzle_identifiers=ids, puzzle_sizes=group, group_sizes=[len(group)])
        writer.finish(vocab_size=6, num_puzzle_identifiers=1)
        shutil.copytree(writer.folder, train, dirs_exist_ok=True)
        shutil.rmtree(writer.folder)
    totals = {"total_groups": len(groups), "mean_puzzle_examples": sum(sizes) / max(1, len(sizes)), "sets": [*sets]}
    describe_anew(train, **totals)
    return folder


def open_all(folder: Path, **changes):
    options = dict(epochs=4, epochs_per_pass=2, global_batch_size=16, eval_split="test", eval_max_examples=None, seed=0)
    return open_datasets(SimpleNamespace(data_path=str(folder), **options | changes), Ranks(0, 1, 0))


@pytest.mark.parametrize(
    "sets",
    [
        {"a": [[1]] * 7},  # 14 examples a pass
        {"a": [[1]] * 7, "b": [[1]] * 7},  # 28, but 14 in each set
        {"a": [[1] * 99 + [99]]},  # 1.98 on average, and 2 but for the rarest draw
    ],
)
def test_a_run_without_a_step_is_refused_when_its_data_are_opened(tmp_path, sets):
    folder = write_sets(tmp_path / "data", **sets)
    with pytest.raises(UserError, match=r"2 epochs of .* do not fill one batch of 16 from one set; lower global_b"):
        open_all(folder)


def test_a_run_with_a_step_is_not_refused(tmp_path):
    for number, sets in enumerate((
        {"a": [[1]] * 8},
        {"a": [[1]] * 8, "b": [[1]] * 2},
        {"a": [[99] * 99 + [1]], "b": [[1]]},  # 98 on average: any draw but the rarest
    )):  # fmt: skip
        train_data, *_ = open_all(write_sets(tmp_path / str(number), **sets))
        assert next(train_data.train_batches(0), None) is not None


def test_what_decides_are_the_draws_of_all_passes(tmp_path):
    """A group of nine small puzzles and one that fills a batch: most runs of two passes draw it, some late or never."""
    folder = write_sets(tmp_path / "data", a=[[1] * 9 + [99]])
    seen = set()
    for seed in range(40):
        data = PuzzleDataset.alone(folder, "train", 16, epochs_per_iter=2, seed=seed)
        batches = [len(list(data.train_batches(number))) for number in range(2)]
        seen.add(tuple(np.minimum(batches, 1)))
        if any(batches):
            open_all(folder, seed=seed)
        else:
            with pytest.raises(UserError, match="do not fill one batch"):
                open_all(folder, seed=seed)
    assert {(0, 0), (0, 1), (1, 0)} <= seen


def edit_split(folder: Path, split: str, **changes) -> None:
    path = folder / split / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("key", ["vocab_size", "num_puzzle_identifiers"])
def test_splits_that_do_not_fit_together_are_refused_before_there_is_a_run_folder(tmp_path, capsys, key):
    for split in ("test", "val"):
        folder = tmp_path / split
        shutil.copytree(PIPELINE / "dataset", folder)
        if split == "val":
            shutil.copytree(folder / "test", folder / "val")
        edit_split(folder, split, **{key: 60})
        line = refusal(capsys, tmp_path / "run", data_path=folder, eval_split=split)
        assert f"{key} is 60 in {split}/dataset.json and " in line and line.endswith("; build the dataset again")
        assert not (tmp_path / "run").exists()


def test_an_empty_test_split_is_refused_before_there_is_a_run_folder(tmp_path, capsys):
    shutil.copytree(PIPELINE / "dataset", tmp_path / "data")
    shutil.rmtree(tmp_path / "data/test")
    SplitWriter(tmp_path / "data", "test", seq_len=16).finish(vocab_size=6, num_puzzle_identifiers=1)
    line = refusal(capsys, tmp_path / "run", data_path=tmp_path / "data")
    assert "data/test holds no examples" in line
    assert os.listdir(tmp_path) == ["data"]


def without_answers(folder: Path, split: str = "test") -> None:
    path = folder / split / "all__labels.npy"
    np.save(path, np.zeros_like(np.load(path)))


@pytest.mark.parametrize("lacking", ["no test split", "no answer in its test split"])
def test_what_cannot_be_tested_is_not(tmp_path, caplog, lacking):
    """A set of tasks without `evaluation`, and private tasks: evaluated on val, or only trained on."""
    folder = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset", folder)
    shutil.copytree(folder / "test", folder / "val")
    _, evaluated, tested = open_all(folder, eval_split="val")
    assert (evaluated.split, tested.split) == ("val", "test") and not caplog.messages
    if lacking == "no test split":
        shutil.rmtree(folder / "test")
    else:
        without_answers(folder)
    _, evaluated, tested = open_all(folder, eval_split="val")
    assert (evaluated.split, tested) == ("val", None)
    with pytest.raises(UserError, match=f"{folder} has {lacking}; evaluate on its split val with eval_split=val"):
        open_all(folder)
    shutil.rmtree(folder / "val")
    for limit in (None, 5):
        train_data, evaluated, tested = open_all(folder, eval_max_examples=limit)
        assert (train_data.split, evaluated, tested) == ("train", None, None)
    assert caplog.messages == [
        f"{folder} has {lacking}: there will be no final test", *2 * [f"{folder} has {lacking}: nothing is evaluated"]
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"val/dataset.json is missing; it has the splits"):
        open_all(folder, eval_split="val")


@pytest.mark.parametrize("ignored", [None, -100, 0, 255])
def test_whether_there_is_an_answer(tmp_path, ignored):
    folder = tmp_path / "data"
    shutil.copytree(PIPELINE / "dataset", folder)
    edit_split(folder, "test", ignore_label_id=ignored)
    path = folder / "test/all__labels.npy"
    labels = np.full(np.load(path).shape, -100 if ignored is None else ignored, np.int16)
    for answers in (0, 1):
        labels[-1, -answers:] = 2 if answers else labels[-1, 0]
        np.save(path, labels)
        assert PuzzleDataset.alone(folder, "test").has_answers() == bool(answers)
