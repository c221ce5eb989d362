"""Reading a whole dataset: python -m pytest tests/test_check.py"""

import shutil

import numpy as np
import pytest

from dataset.check import CheckConfig, check
from dataset.format import load_metadata, load_set
from errors import UserError
from tests.launch import run
from tests.runs import PIPELINE
from tests.sample_datasets import as_other_tools_write_it, build_sudoku, write_dataset


def check_folder(folder):
    check(CheckConfig(dataset=folder))


def test_a_dataset_as_it_was_built(tmp_path, capsys):
    folder = build_sudoku(tmp_path)
    capsys.readouterr()
    check_folder(folder)
    sizes = {split: sum(np.load(path).nbytes for path in folder.glob(f"{split}/*.npy")) for split in ("test", "train")}
    assert capsys.readouterr().out.splitlines() == [
        "identifiers.json: 1 names",
        *(f"{split}: 5 arrays, {size:,} bytes, as built" for split, size in sizes.items()),
    ]
    check_folder(PIPELINE / "dataset")  # of before there were digests
    assert "train: 5 arrays, 8,168 bytes, in order, but built when no digests were recorded" in capsys.readouterr().out


def test_a_dataset_of_another_builder(tmp_path, capsys, caplog):
    folder = build_sudoku(tmp_path)
    as_other_tools_write_it(folder)
    capsys.readouterr()
    check_folder(folder)
    assert capsys.readouterr().out.count("5 arrays") == 2
    (warning,) = caplog.messages
    assert warning.endswith("keys that are not known here and not used: total_puzzles")


def test_one_bit_anywhere_is_found(tmp_path):
    """Also where opening the dataset finds nothing: between the blocks of the sample."""
    rows = np.full((90_000, 81), 2, np.uint8)
    folder = write_dataset(tmp_path / "data", rows, rows, vocab_size=6) / "train"
    gap = 128 + 70_000  # after the header and the first block; the blocks are 115,000 bytes apart
    damaged = {"all__inputs.npy": gap, "all__puzzle_identifiers.npy": -1}
    for name, at in damaged.items():
        shutil.copy(folder / name, tmp_path / name)
        with open(folder / name, "r+b") as file:
            file.seek(at, 0 if at > 0 else 2)
            byte = file.read(1)[0]
            file.seek(at, 0 if at > 0 else 2)
            file.write(bytes([byte ^ 1]))
        if at > 0:
            load_set(folder, "all", load_metadata(folder))
        with pytest.raises(UserError, match=rf"train: not what was built \(other digests\): {name}; build"):
            check_folder(tmp_path / "data")
        shutil.copy(tmp_path / name, folder / name)
    check_folder(tmp_path / "data")
    (tmp_path / "data/identifiers.json").write_text('["<blank>", "a"]')
    with pytest.raises(UserError, match=r"identifiers.json is not what was built with train \(its digest differs\)"):
        check_folder(tmp_path / "data")


def test_the_command(tmp_path):
    ended = run("-m", "dataset.check", "--dataset", tmp_path, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {tmp_path}/train/dataset.json is missing; ")
    assert ended.stderr.count("\n") == 1
