"""Any kind of puzzle from CSV files, even a dropped-in one: python -m pytest tests/test_build_grid_dataset.py"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.build_grid_dataset import GridConfig, build
from dataset.format import load_metadata
from errors import UserError
from puzzle_dataset import PuzzleDataset
from puzzles.draw import board_image, board_lines
from puzzles.kind import kind_of
from tests.latin_squares import all_latin_squares, latin_dropped_in, write_source
from tests.launch import ROOT
from tests.sample_datasets import REFERENCE, Arrays


@pytest.fixture
def latin(tmp_path):
    with latin_dropped_in(tmp_path / "dropped_in") as folder:
        yield folder


def config(source: Path, out: Path, kind: str = "latin", **options) -> GridConfig:
    files = {"train_file": source / "train.csv", "test_file": source / "test.csv"}
    return GridConfig(kind=kind, output_dir=out, **files, **options)


def texts(tokens: np.ndarray) -> list[str]:
    return ["".join("?.ABCD"[token] for token in row) for row in tokens]


def is_latin(text: str) -> bool:
    rows = [text[i : i + 4] for i in range(0, 16, 4)]
    return all(set(line) == set("ABCD") for line in (*rows, *map("".join, zip(*rows, strict=True))))


def test_a_dropped_in_kind_is_built_opened_and_drawn(latin, tmp_path):
    rows = write_source(tmp_path / "csv", train=40, test=30)
    build(config(tmp_path / "csv", tmp_path / "out", num_aug=5, val_fraction=0.2))
    train, test, val = (Arrays(tmp_path / "out", split) for split in ("train", "test", "val"))
    assert list(zip(texts(test.inputs), texts(test.labels), strict=True)) == rows["test"]
    originals = list(zip(texts(train.inputs[::6]), texts(train.labels[::6]), strict=True))
    held_out = list(zip(texts(val.inputs), texts(val.labels), strict=True))
    assert (len(originals), len(held_out)) == (32, 8)
    assert sorted(originals + held_out) == sorted(rows["train"])
    assert train.group_indices.tolist() == list(range(0, 193, 6))
    for question, answer in zip(texts(train.inputs), texts(train.labels), strict=True):
        assert is_latin(answer)
        assert all(clue in (".", letter) for clue, letter in zip(question, answer, strict=True))
    blanks = (train.inputs == 1).sum(axis=1).reshape(-1, 6)
    assert (blanks == blanks[:, :1]).all()
    assert not set(texts(train.labels)) & set(texts(test.labels) + texts(val.labels))
    assert len(set(texts(train.labels))) > 100

    dataset = PuzzleDataset.alone(tmp_path / "out", "test", 8)
    assert dataset.num_examples() == 30
    kind = kind_of(dataset.metadata.model_dump(), [one.inputs for one in dataset.sets.values()], "here")
    assert (kind.name, kind.rows, kind.columns) == ("latin", 4, 4)
    answer = test.labels[0]
    assert "".join(board_lines(kind, answer)).replace(" ", "") == rows["test"][0][1]
    assert board_image(kind, answer, test.inputs[0]).size == (483, 483)
    described = json.loads((tmp_path / "out/test/dataset.json").read_text())
    assert (described["kind"], described["symbols"]) == ("latin", ["?", ".", "A", "B", "C", "D"])


def test_copies_that_would_show_a_held_out_solution_are_the_original(latin, tmp_path, capsys):
    """All squares but a few are in test: a copy of one of the few is hardly ever another of them."""
    rows = write_source(tmp_path / "csv", train=10, test=565)
    with (tmp_path / "csv/test.csv").open("a") as file:  # a puzzle of train itself, which stays
        file.write("x,{},{},0\n".format(*rows["train"][4]))
    build(config(tmp_path / "csv", tmp_path / "out", num_aug=20))
    train, test = Arrays(tmp_path / "out"), Arrays(tmp_path / "out", "test")
    groups = train.labels.reshape(10, 21, 16)
    assert texts(groups[:, 0]) == [answer for _, answer in rows["train"]]
    shown = set(texts(groups[[0, 1, 2, 3, 5, 6, 7, 8, 9]].reshape(-1, 16)))
    assert not shown & set(texts(test.labels))
    kept = int((groups[:, 1:] == groups[:, :1]).all(-1).sum())
    assert kept > 150
    assert f"warning: {kept} copies are the original: their solution is in test or val" in capsys.readouterr().err


def test_the_seed_alone_decides(latin, tmp_path):
    write_source(tmp_path / "csv", train=20, test=5)
    built = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(config(tmp_path / "csv", tmp_path / name, num_aug=3, subsample_size=10, seed=seed))
        built.append(Arrays(tmp_path / name).inputs.tolist())
    assert built[0] == built[1] != built[2]


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_what_has_a_builder_of_its_own_comes_out_the_same(kind, tmp_path):
    """As the original built them, without copies."""
    build(config(REFERENCE / kind, tmp_path / "out", kind))
    expected = np.load(REFERENCE / kind / "built.npz")
    copies = 8 if kind == "maze" else 1
    for split, step in (("train", copies), ("test", 1)):
        for field in ("inputs", "labels"):
            np.testing.assert_array_equal(
                getattr(Arrays(tmp_path / "out", split), field), expected[f"{split}/{field}"][::step]
            )
    assert load_metadata(tmp_path / "out/train").kind == kind


def square(text: str = "ABCDBADCCDABDCBA", question: str = "A" + "." * 15) -> str:
    return f"x,{question},{text},0"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (square(question="E" + "." * 15), "train.csv:3: the question has a character other than . A B C D"),
        (square("ABCDBADCCDABDCB?"), "train.csv:3: the answer has a character other than . A B C D"),
        (square("ABCDBADCCDABDCAB"), "train.csv:3: the answer does not obey the rules"),
        (square(question="B" + "." * 15), "train.csv:3: the answer does not obey the rules"),
        ("x,...,ABC,0", "train.csv:3: the question has 3 characters; the first question has 16"),
    ],
)
def test_rows_that_are_wrong_are_named(latin, tmp_path, row, problem):
    write_source(tmp_path / "csv", train=1, test=1)
    with (tmp_path / "csv/train.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(UserError) as caught:
        build(config(tmp_path / "csv", tmp_path / "out"))
    assert str(caught.value).endswith(problem)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(latin, tmp_path):
    write_source(tmp_path / "csv", train=2, test=2)
    with pytest.raises(UserError, match="no kind of puzzle called 'kakuro'; choose one of arc, grid, latin, maze"):
        build(config(tmp_path / "csv", tmp_path / "out", "kakuro"))
    with pytest.raises(UserError, match="ARC tasks are not read from CSV files"):
        build(config(tmp_path / "csv", tmp_path / "out", "arc"))
    with pytest.raises(UserError, match=r"gone/test\.csv is missing; name a puzzle CSV"):
        build(config(tmp_path / "gone", tmp_path / "out"))
    (tmp_path / "csv/test.csv").write_text("source,question,answer,rating\nx,...,ABC,0\n")
    with pytest.raises(UserError, match=r"test.csv:2: a question of 3 characters; a Latin square has 4, 9, 16, …, 81"):
        build(config(tmp_path / "csv", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    write_source(tmp_path / "csv", train=10, test=5)
    command = [sys.executable, str(ROOT / "dataset/build_grid_dataset.py"), "--kind", "latin", "--num-aug", "2"]
    command += ["--train-file", tmp_path / "csv/train.csv", "--test-file", tmp_path / "csv/test.csv"]
    command += ["--output-dir", tmp_path / "out"]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.stdout == f"{tmp_path / 'out'}: train: 30 examples in 10 groups; test: 5 examples in 5 groups\n", (
        done.stderr
    )
    failed = subprocess.run(command[:4], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    shown = subprocess.run(
        [*command[:2], "--help"], capture_output=True, text=True, env={"COLUMNS": "300"}, check=False
    )
    for name, field in GridConfig.model_fields.items():
        assert "--" + name.replace("_", "-") in shown.stdout
        assert field.description in shown.stdout


def test_there_are_576_latin_squares():
    squares = all_latin_squares()
    assert len(set(squares)) == 576
    assert all(map(is_latin, squares))
