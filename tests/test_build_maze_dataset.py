"""The maze builder against its reference arrays, scalar transforms, and users' mistakes.

python -m pytest tests/test_build_maze_dataset.py
"""

import json
from pathlib import Path

import numpy as np
import pytest

from dataset import build_maze_dataset, puzzle_csv
from dataset.build_maze_dataset import MazeConfig, build, usual_path_length
from errors import UserError
from puzzles.kind import find_kind
from tests.csv_builders import Builder, contents, load

BUILDER = Builder("maze")
REFERENCE, rows_of = BUILDER.reference, BUILDER.rows_of
write_source, run_script = BUILDER.write_source, BUILDER.run_script

# The 8 symmetries of a square, by where the cell at (row, column) of the copy comes from; n is the last index.
SOURCES = [
    lambda r, c, n: (r, c),
    lambda r, c, n: (c, n - r),  # counter-clockwise quarter turn
    lambda r, c, n: (n - r, n - c),
    lambda r, c, n: (n - c, r),
    lambda r, c, n: (r, n - c),  # left-right
    lambda r, c, n: (n - r, c),  # up-down
    lambda r, c, n: (c, r),  # transpose
    lambda r, c, n: (n - c, n - r),  # anti-transpose
]


def transformed(grid: str, tid: int) -> str:
    size = round(len(grid) ** 0.5)
    places = (SOURCES[tid](r, c, size - 1) for r in range(size) for c in range(size))
    return "".join(grid[r * size + c] for r, c in places)


def texts(tokens: np.ndarray) -> list[str]:
    return ["".join("?# SGo"[token] for token in row) for row in tokens.tolist()]


def test_reference_arrays(tmp_path: Path) -> None:
    build(MazeConfig(source_dir=REFERENCE, output_dir=tmp_path / "out", aug=True))
    reference = np.load(REFERENCE / "built.npz")
    for split in ("train", "test"):
        for field, array in load(tmp_path / "out", split).items():
            np.testing.assert_array_equal(array, reference[f"{split}/{field}"], err_msg=f"{split}/{field}")
        metadata = json.loads((tmp_path / "out" / split / "dataset.json").read_text())
        metadata.pop("digests")
        kind = {key: metadata.pop(key) for key in ("kind", "rows", "columns", "symbols", "look")}
        assert metadata == json.loads((REFERENCE / f"{split}_dataset.json").read_text())
        assert kind == {
            "kind": "maze", "rows": 30, "columns": 30, "symbols": list("?# SGo"),
            "look": {
                "fills": ["none", "wall", "free", "start", "goal", "path"],
                "glyphs": ["", "", "", "S", "G", ""],
                "boxes": None,
            },
        }  # fmt: skip
    assert json.loads((tmp_path / "out" / "identifiers.json").read_text()) == ["<blank>"]


def test_without_aug_a_group_is_the_maze(tmp_path: Path) -> None:
    build(MazeConfig(source_dir=REFERENCE, output_dir=tmp_path / "out"))
    reference, train = np.load(REFERENCE / "built.npz"), load(tmp_path / "out", "train")
    np.testing.assert_array_equal(train["inputs"], reference["train/inputs"][::8])
    np.testing.assert_array_equal(train["labels"], reference["train/labels"][::8])
    assert train["group_indices"].tolist() == [0, 1, 2, 3, 4]


def test_copies_are_the_eight_symmetries_in_order(tmp_path: Path) -> None:
    build(MazeConfig(source_dir=REFERENCE, output_dir=tmp_path / "out", aug=True))
    train = load(tmp_path / "out", "train")
    for maze, (_, question, answer, _) in enumerate(rows_of("train")[1:]):
        group = slice(8 * maze, 8 * maze + 8)
        assert texts(train["inputs"][group]) == [transformed(question, tid) for tid in range(8)]
        assert texts(train["labels"][group]) == [transformed(answer, tid) for tid in range(8)]


def test_generated_splits(tmp_path: Path) -> None:
    config = {"generate": True, "size": 8, "min_path_length": 9, "num_train": 40, "num_test": 30, "aug": True}
    build(MazeConfig(output_dir=tmp_path / "out", val_fraction=0.25, **config))
    train, test, val = (load(tmp_path / "out", split) for split in ("train", "test", "val"))
    assert [len(arrays["inputs"]) for arrays in (train, test, val)] == [240, 30, 10]
    assert train["group_indices"].tolist() == list(range(0, 241, 8))
    assert val["group_indices"].tolist() == list(range(11))
    trained = set(texts(train["inputs"]))
    assert len(trained) > 200
    assert not trained & set(texts(test["inputs"]) + texts(val["inputs"]))
    metadata = json.loads((tmp_path / "out" / "val" / "dataset.json").read_text())
    assert (metadata["seq_len"], metadata["vocab_size"], metadata["total_groups"]) == (64, 6, 10)
    assert (train["labels"] == 5).sum(axis=1).min() >= 9


def test_result_depends_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"generate": True, "size": 6, "min_path_length": 6, "num_train": 30, "num_test": 5}
    config |= {"aug": True, "subsample_size": 20, "val_fraction": 0.2}
    build(MazeConfig(output_dir=tmp_path / "a", seed=5, **config))
    build(MazeConfig(output_dir=tmp_path / "other", seed=6, **config))
    monkeypatch.setattr(build_maze_dataset, "SLICE", 3)
    monkeypatch.setattr(puzzle_csv, "CHUNK_CHARACTERS", 100)
    build(MazeConfig(output_dir=tmp_path / "b", seed=5, **config))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "other")


def test_turned_mazes_stay_on_one_side_of_val(tmp_path: Path) -> None:
    header, first, second, *_ = rows_of("train")
    turned = [[first[0], transformed(first[1], tid), transformed(first[2], tid), first[3]] for tid in range(4)]
    source = write_source(tmp_path / "csv", train=[header, *turned, second])
    sizes = set()
    for seed in range(8):
        build(MazeConfig(source_dir=source, output_dir=tmp_path / "out", val_fraction=0.2, seed=seed, aug=True))
        train, val = (load(tmp_path / "out", split)["inputs"] for split in ("train", "val"))
        assert not set(texts(train)) & set(texts(val))
        sizes.add((len(train), len(val)))
    assert sizes == {(32, 1), (8, 4)}


def test_warns_of_train_mazes_in_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = rows_of("train"), rows_of("test")
    turned = [test[2][0], transformed(test[2][1], 3), transformed(test[2][2], 3), test[2][3]]
    source = write_source(tmp_path / "csv", train=[*train, test[1], turned])
    build(MazeConfig(source_dir=source, output_dir=tmp_path / "out"))
    assert "1 of 6 train puzzles are in test too, 2 equal one of test, perhaps rotated" in capsys.readouterr().err
    build(MazeConfig(source_dir=REFERENCE, output_dir=tmp_path / "out"))
    assert "warning" not in capsys.readouterr().err


QUESTION = "S  # # # G      "
ANSWER = "S  #o# #oG      "
GOOD = ["x", QUESTION, ANSWER, "3"]


def tiny(**changes: str) -> list[list[str]]:
    """Two 4×4 mazes, the second (line 3) with changed columns."""
    columns = dict(zip(("source", "question", "answer", "rating"), GOOD, strict=True))
    return [list(columns), GOOD, list((columns | changes).values())]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (tiny(question=QUESTION[:-1]), r"train\.csv:3: the question has 15 characters"),
        (tiny(answer=ANSWER + " "), r"train\.csv:3: the answer has 17 characters"),
        (tiny(question=QUESTION.replace("#", "%")), r"train\.csv:3: the question has a character other"),
        (tiny(question=ANSWER), r"train\.csv:3: the question has a character other"),
        (tiny(answer=ANSWER.replace("o", "0")), r"train\.csv:3: the answer has a character other"),
        (
            tiny(question=QUESTION.replace("G", " ")),
            r"train\.csv:3: the question does not have exactly one S and one G",
        ),
        (tiny(question=QUESTION[:-1] + "S"), r"train\.csv:3: the question does not have exactly one S and one G"),
        (tiny(answer=ANSWER[:-1] + "#"), r"train\.csv:3: the answer differs from the question"),
        (tiny(answer=ANSWER[:3] + "o" + ANSWER[4:]), r"train\.csv:3: the answer differs from the question"),
        (tiny(answer=QUESTION), r"train\.csv:3: the o cells of the answer are not a path"),
        (tiny(answer=QUESTION[:4] + "o" + QUESTION[5:]), r"train\.csv:3: the o cells of the answer are not a path"),
        (tiny(answer=ANSWER[:-1] + "o"), r"train\.csv:3: the o cells of the answer are not a path"),
        (tiny(rating="3.5"), r"train\.csv:3: the rating '3.5' is not a whole number"),
        ([["question", "answer"], *tiny()[1:]], r"train\.csv:1: the header is not"),
        ([*tiny(), GOOD[:2]], r"train\.csv:4: expected 4 columns, found 2; is the file truncated"),
        ([tiny()[0], ["x", "S G", "SoG", "2"]], r"train\.csv:2: a question of 3 characters; a maze is a square"),
        ([tiny()[0], ["x", "S  G", "So G", "2"]], r"train\.csv: puzzles of 4 cells, but the test split has 16"),
    ],
)
def test_malformed_csv(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    source = write_source(tmp_path / "csv", train=rows, test=tiny())
    with pytest.raises(UserError, match=message):
        build(MazeConfig(source_dir=source, output_dir=tmp_path / "new" / "out"))
    assert not (tmp_path / "new").exists()


def test_tiny_mazes_are_well_formed(tmp_path: Path) -> None:
    """What the test above changes is fine unchanged."""
    build(MazeConfig(source_dir=write_source(tmp_path / "csv", train=tiny(), test=tiny()), output_dir=tmp_path / "out"))
    assert texts(load(tmp_path / "out", "train")["labels"]) == [ANSWER, ANSWER]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 20}, "--size belongs to --generate"),
        ({"source_dir": REFERENCE, "min_path_length": 20}, "--min-path-length belongs to --generate"),
        ({"generate": True, "source_dir": REFERENCE}, "two sources"),
        ({"generate": True, "size": 10, "min_path_length": 90}, "--min-path-length 90: a 10×10 maze"),
        ({"source_dir": REFERENCE, "subsample_size": 5}, "only 4 train puzzles"),
        ({"source_dir": REFERENCE.parent}, "missing file .*train.csv; --source-dir must hold"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(MazeConfig(output_dir=tmp_path / "out", **options))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", [3, 5, 9])
def test_a_size_alone_is_enough(tmp_path: Path, size: int) -> None:
    """Searchformer's 110 steps are more than such a maze has cells."""
    build(MazeConfig(generate=True, size=size, num_train=3, num_test=1, output_dir=tmp_path / "out"))
    kind = find_kind("maze")(size, size)
    steps = [kind.shortest_path_steps(row) for row in load(tmp_path / "out", "train")["inputs"]]
    assert min(steps) > usual_path_length(size) and usual_path_length(30) == 110


def test_script_fails_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "csv", train=tiny(answer=QUESTION), test=tiny())
    result = run_script("--source-dir", source, "--output-dir", tmp_path / "new" / "out")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: {source}/train.csv:3: the o cells of the answer are not a path from S to G"
    ]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_script_builds_with_every_hash_seed_alike(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        result = run_script(
            *("--source-dir", REFERENCE, "--aug", "--val-fraction", 0.3, "--output-dir", tmp_path / seed),
            PYTHONHASHSEED=seed,
        )
        assert result.returncode == 0, result.stderr
        assert "train: 24 examples in 3 groups" in result.stdout
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_help_documents_every_option() -> None:
    text = run_script("--help", COLUMNS="300").stdout
    for name, field in MazeConfig.model_fields.items():
        assert "--" + name.replace("_", "-") in text
        assert field.description in text
