"""ARC tasks in files as people have them: python -m pytest tests/test_arc_files.py"""

import itertools
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset import build_arc_dataset
from dataset.arc_tasks import Task, read_folders, unite_versions
from dataset.build_arc_dataset import ArcConfig, assign_splits, build, read_tasks
from dataset.cli import run_builder
from errors import UserError
from tests.arc_oracle import EVALUATION_TASKS, TRAINING_TASKS, oracle_encode, raw_tasks, write_folder


def task(number: int, tests: int = 1, size: int = 2) -> dict:
    """A small task; a pair of it is in no other one."""
    grids = [[[number % 10, pair], *[[number // 10, 9 - pair]] * (size - 1)] for pair in range(2 + tests)]
    pairs = [{"input": grid, "output": grid[::-1]} for grid in grids]
    return {"train": pairs[:2], "test": pairs[2:]}


def hidden(task: dict, **output: None) -> dict:
    """Without the outputs of its test pairs, or with what is given in their place."""
    return task | {"test": [{"input": pair["input"]} | output for pair in task["test"]]}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_kaggle(folder: Path, name: str, tasks: dict[str, dict], solutions: str | None = "solutions") -> Path:
    if solutions:
        outputs = {key: [pair["output"] for pair in one["test"]] for key, one in tasks.items()}
        write(folder / f"arc-agi_{name}_{solutions}.json", outputs)
    return write(folder / f"arc-agi_{name}_challenges.json", {key: hidden(one) for key, one in tasks.items()})


def read(*places: Path) -> dict[str, Task]:
    tasks, _ = unite_versions(read_folders(places))
    assert len({task.name for task in tasks}) == len(tasks)
    return {task.name: task for task in tasks}


def content(tasks: dict[str, Task]) -> dict:
    return {
        name: (one.evaluation, [pair.key() for pair in one.demonstrations], [pair.key() for pair in one.queries])
        for name, one in tasks.items()
    }


def answered(one: Task) -> list[bool]:
    return [pair.answered for pair in one.queries]


@pytest.fixture
def sets() -> dict[str, dict[str, dict]]:
    return {
        "training": {name: raw_tasks()[name] for name in TRAINING_TASKS},
        "evaluation": {name: raw_tasks()[name] for name in EVALUATION_TASKS},
    }


def test_kaggle_files_give_the_tasks_of_the_folders(tmp_path, sets, capsys):
    for name, tasks in sets.items():
        write_kaggle(tmp_path / "kaggle", name, tasks)
    sample = {name: [{"attempt_1": [[0]], "attempt_2": [[0]]}] for name in TRAINING_TASKS}
    write(tmp_path / "kaggle/sample_submission.json", sample)
    wanted = content(read(write_folder(tmp_path / "folders")))
    assert content(read(tmp_path / "kaggle")) == wanted
    files = [tmp_path / f"kaggle/arc-agi_{name}_challenges.json" for name in ("evaluation", "training")]
    assert content(read(*files)) == wanted  # each with the solutions beside it
    solutions = [Path(str(file).replace("challenges", "solutions")) for file in files]
    assert content(read(*files, *solutions)) == wanted
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "named", "held_out"),
    [
        ("test/arc-agi_training_challenges.json", "test", False),  # somebody's folder
        ("test/arc-agi_training_challenges.json", "test/arc-agi_training_challenges.json", False),
        ("test/arc-agi_training_challenges.json", ".", False),
        ("test/all.json", "test", False),
        ("test/all.json", ".", True),
        ("evaluation/sub/all.json", ".", True),
        ("x/my-evaluation-tasks.json", ".", True),
        ("x/arc-agi_test_challenges.json", "x", True),
        ("x/latest.json", ".", False),
    ],
)
def test_the_set_of_a_combined_file(tmp_path, file, named, held_out):
    write(tmp_path / file, {"a": task(1), "b": task(2)})
    assert [one.evaluation for one in read(tmp_path / named).values()] == [held_out] * 2


def test_names_do_not_matter_where_contents_tell(tmp_path, sets):
    """Of the tasks in `all.json`, the solutions are in two files, whose names say nothing."""
    tasks = sets["training"]
    write(tmp_path / "all.json", {name: hidden(one) for name, one in tasks.items()})
    for name, one in tasks.items():
        write(tmp_path / f"answers_{name}.json", {name: [pair["output"] for pair in one["test"]]})
    found = read(tmp_path)
    assert [all(answered(one)) and not one.evaluation for one in found.values()] == [True] * 4
    assert list(found) == list(tasks)


def test_solutions_of_other_challenges_are_not_taken(tmp_path):
    """By their names these belong to the first file, although they have a task of the second's."""
    write_kaggle(tmp_path, "old", {"a": task(1), "b": task(2)})
    write(tmp_path / "new_challenges.json", {"b": hidden(task(2, tests=2)), "c": hidden(task(3))})
    found = read(tmp_path)
    assert {name: answered(one) for name, one in found.items()} == {"b": [True, False], "c": [False], "a": [True]}


def test_equal_test_inputs_of_a_version_stay(tmp_path):
    """The place in a submission counts; what another version repeats is there once."""
    (first,) = task(1)["test"]
    other = task(2)["test"][0]
    write(tmp_path / "one/evaluation/a.json", task(1) | {"test": [first, first]})
    write(tmp_path / "two/evaluation/a.json", task(1) | {"test": [first, other]})
    (one,) = read(tmp_path).values()
    assert [pair.input.tolist() for pair in one.queries] == [pair["input"] for pair in (first, first, other)]


@pytest.mark.parametrize("output", [{}, {"output": None}])
@pytest.mark.parametrize("kaggle", [True, False])
def test_private_tasks_go_to_test_whatever_their_set_is_called(tmp_path, output, kaggle):
    private = {name: hidden(raw_tasks()[name], **output) for name in TRAINING_TASKS}
    if kaggle:
        write(tmp_path / "arc-agi_private_challenges.json", private)
    else:
        for name, one in private.items():
            write(tmp_path / "ours" / f"{name}.json", one)
    found = read(tmp_path)
    assert list(found) == list(TRAINING_TASKS)
    for name, one in found.items():
        assert one.evaluation and answered(one) == [False] * len(raw_tasks()[name]["test"])
        assert [pair.input.tolist() for pair in one.queries] == [pair["input"] for pair in raw_tasks()[name]["test"]]


def test_a_private_version_has_the_answers_of_another_one(tmp_path):
    """Kaggle's test file holds tasks of the training set until the real one takes its place."""
    write_kaggle(tmp_path, "training", {"a": task(1, tests=2), "b": task(2)})
    write_kaggle(tmp_path, "test", {"a": task(1, tests=2), "c": task(3)}, solutions=None)
    found = read(tmp_path)
    assert {name: (one.evaluation, answered(one)) for name, one in found.items()} == {
        "a": (True, [True, True]), "b": (False, [True]), "c": (True, [False]),
    }  # fmt: skip
    assert len(found["a"].demonstrations) == 4  # as in the training set: those of test count as a leak


def test_files_are_found_however_deep_they_lie(tmp_path, capsys):
    for number, place in enumerate(["top", "corpus/Count/a", "corpus/Order/b", "Minimal/c", "x/evaluation/easy/d"]):
        write(tmp_path / f"{place}.json", task(number))
    write(tmp_path / "corpus/.cache/hidden.json", task(9))
    os.symlink(tmp_path / "corpus", tmp_path / "corpus/Count/up")  # in circles
    os.symlink(tmp_path / "corpus/Order", tmp_path / "linked")
    (tmp_path / "README.md").touch()
    found = read(tmp_path)
    assert list(found) == ["top", "c", "a", "b", "d"]
    assert [name for name, one in found.items() if one.evaluation] == ["d"]
    assert capsys.readouterr().err == ""
    for number in range(25):
        write(tmp_path / f"corpus/notes{number:02}.json", {"author": 5, "sizes": [1, 2]})
    assert list(read(tmp_path)) == list(found)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: 25 JSON files hold no ARC tasks and are passed over: {tmp_path}/corpus/notes00")
    assert line.endswith("notes19.json and 5 more")


@pytest.mark.parametrize(("name", "evaluation"), [("MiniARC", False), ("evaluation", True), ("test", True)])
def test_a_flat_folder_is_a_set(tmp_path, name, evaluation):
    for number in range(3):
        write(tmp_path / f"{name}/t{number}.json", task(number, size=5))
    assert [one.evaluation for one in read(tmp_path / name).values()] == [evaluation] * 3
    assert [one.evaluation for one in read(tmp_path / name / "t1.json").values()] == [evaluation]


def test_a_bare_list_of_pairs_is_trained_on(tmp_path):
    """As in re-arc, whose tasks are called like those that they vary: they add to these."""
    more = [pair for number in range(5, 9) for pair in task(number)["train"]]
    write(tmp_path / "re_arc/tasks/a.json", more)
    (alone,) = read(tmp_path).values()
    assert (alone.evaluation, len(alone.demonstrations), alone.queries) == (False, 8, ())
    write(tmp_path / "arc/evaluation/a.json", task(1))
    (both,) = read(tmp_path / "re_arc", tmp_path / "arc").values()
    assert (both.evaluation, len(both.demonstrations), len(both.queries)) == (True, 10, 1)
    write(tmp_path / "arc/training/b.json", task(2))
    config = ArcConfig(dataset_dirs=[str(tmp_path)], val_fraction=0.9)
    assert [len(splits["train"]) for splits in assign_splits(read_tasks(config), config).values()] == [10, 2]


def test_rows_of_one_cell_each_way(tmp_path):
    """1D-ARC."""
    row = {"input": [[0, 3, 3, 0, 0]], "output": [[0, 0, 0, 3, 3]]}
    column = {side: [[cell] for cell in grid[0]] for side, grid in row.items()}
    write(tmp_path / "1d/a.json", {"train": [row, column], "test": [row]})
    build(ArcConfig(dataset_dirs=[str(tmp_path / "1d")], output_dir=str(tmp_path / "out"), num_aug=3))
    inputs = np.load(tmp_path / "out/train/all__inputs.npy")
    assert oracle_encode(row["input"]) in inputs.tolist()


BIG = {"input": [[0] * 31], "output": [[0]]}
FAULTS = {  # content of x_challenges.json and x_solutions.json -> the line
    "big": (
        {"a": task(1), "b": {"train": [BIG], "test": [BIG]}},
        {},
        r"x_challenges\.json: task b: train\[0\]\.input is 1×31",
    ),
    "no input": ({"a": {"train": task(1)["train"], "test": [{}]}}, {}, r'task a: test\[0\] has no "input"'),
    "a demonstration's": ({"a": {"train": hidden(task(1))["test"], "test": task(1)["test"]}}, {}, 'has no "output"'),
    "empty": ({"a": hidden(task(1), output=[])}, {}, r"test\[0\]\.output is an empty grid"),
    "fewer": ({"a": hidden(task(1, 2))}, {"a": [[[1]]]}, r"x_solutions\.json: task a has 1 outputs for 2 test inputs"),
    "no list": ({"a": hidden(task(1))}, {"a": 5, "b": [[[1]]]}, "task a has no list of outputs for 1 test inputs"),
    "ragged": ({"a": hidden(task(1))}, {"a": [[[1], [2, 3]]]}, r"solutions\.json: task a: output 0 is ragged"),
    "another": ({"a": task(1)}, {"a": [[[1]]]}, r"task a: output 0 differs from the one in .*challenges\.json"),
    "no name": ({"": task(1)}, {}, r"x_challenges\.json: task : a task cannot be called ''; rename it"),
    "the blank's": ({"<blank>": task(1)}, {}, "a task cannot be called '<blank>'; rename it"),
    "half a character": ({"a\ud800": task(1)}, {}, r"a task cannot be called 'a\\ud800'; rename it"),
    "an augmentation's": ({"a|||t1|||0234567891": task(1)}, {}, "cannot be called like an augmentation; rename it"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_combined_files_end_in_one_line(tmp_path, monkeypatch, capsys, case):
    challenges, solutions, message = FAULTS[case]
    write(tmp_path / "in/x_challenges.json", challenges)
    if solutions:
        write(tmp_path / "in/x_solutions.json", solutions)
    options = ["--dataset-dirs", tmp_path / "in", "--output-dir", tmp_path / "out", "--num-aug", 1]
    monkeypatch.setattr(sys, "argv", ["build_arc_dataset.py", *map(str, options)])
    with pytest.raises(SystemExit) as stop:
        run_builder(build_arc_dataset.build)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a_solutions.json", {"a": [[[1]]]}, "holds solutions, but there are no challenges beside it"),
        ("a.json", {"b": 5}, "a.json holds no ARC tasks: it is not a task, Kaggle's"),
        ("a.json", [5], "a.json holds no ARC tasks"),
        ("a.json", {}, "a.json holds no ARC tasks"),
        ("a.json", {"b": [{"attempt_1": [[0]], "attempt_2": [[0]]}]}, "no JSON file holds ARC tasks"),
    ],
)
def test_a_file_without_tasks_is_refused(tmp_path, name, content, message):
    file = write(tmp_path / "in" / name, content)
    with pytest.raises(UserError, match=message):
        read(file)
    with pytest.raises(UserError, match=message if "solutions" in name else "no JSON file holds ARC tasks"):
        read(file.parent)


def test_what_is_invalid_is_passed_over_by_name(tmp_path, capsys):
    write(tmp_path / "in/evaluation/good.json", task(1))
    write(tmp_path / "in/training/big.json", {"train": [BIG], "test": [BIG]})
    (tmp_path / "in/training/broken.json").write_text("{")
    write(tmp_path / "in/x_challenges.json", {"fine": task(2), "long": {"train": [BIG], "test": [BIG]}})
    write(tmp_path / "in/x_solutions.json", {"fine": [[[1]], [[2]]]})
    options = dict(dataset_dirs=[str(tmp_path / "in")], output_dir=str(tmp_path / "out"), num_aug=1)
    with pytest.raises(UserError, match=r"big\.json.*, or pass over what is invalid with --skip-invalid$"):
        build(ArcConfig(**options))
    build(ArcConfig(**options, skip_invalid=True))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    for name in ("big.json: train[0].input is 1×31", "broken.json is not JSON", "task long: train[0].input is 1×31"):
        assert sum(line.startswith("warning: passed over (--skip-invalid): ") and name in line for line in lines) == 1
    assert "warning: 4 invalid tasks, files or folders were passed over, 1 tasks were read" in lines
    names = json.loads((tmp_path / "out/identifiers.json").read_text())
    assert "good" in names and not {"big", "long", "fine"} & {*names}
    (tmp_path / "in/evaluation/good.json").unlink()
    with pytest.raises(UserError, match="--skip-invalid leaves no task"):
        build(ArcConfig(**options, skip_invalid=True))


@pytest.mark.parametrize("refused", ["iterdir", "is_dir"])  # which may not be read, or not be entered
def test_a_folder_that_cannot_be_read_is_passed_over_by_name(refused, tmp_path, capsys, monkeypatch):
    write(tmp_path / "in/evaluation/good.json", task(1))
    write(tmp_path / "in/evaluation/closed/below/lost.json", task(2))
    allowed = getattr(Path, refused)

    def refuse(path: Path):
        if "closed" in (path if refused == "iterdir" else path.parent).name:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(Path, refused, refuse)
    options = dict(dataset_dirs=[str(tmp_path / "in")], output_dir=str(tmp_path / "out"), num_aug=0)
    with pytest.raises(UserError, match=r"^cannot read .*/closed.*: Permission denied; .*, or .* --skip-invalid$"):
        build(ArcConfig(**options))
    build(ArcConfig(**options, skip_invalid=True))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any(re.match(r"warning: passed over \(--skip-invalid\): cannot read .*/closed", line) for line in lines)
    assert "warning: 1 invalid tasks, files or folders were passed over, 1 tasks were read" in lines
    closed = options | {"dataset_dirs": [str(tmp_path / "in/evaluation/closed")]}
    with pytest.raises(UserError, match=r"^cannot read .*/closed.*: Permission denied; .*, or .* --skip-invalid$"):
        build(ArcConfig(**closed))
    with pytest.raises(UserError, match=r"^--skip-invalid leaves no task; correct what is invalid$"):
        build(ArcConfig(**closed, skip_invalid=True))
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def chosen(folder: Path, **options) -> list[str]:
    return [task.name for task in read_tasks(ArcConfig(dataset_dirs=[str(folder)], **options))]


def test_tasks_are_chosen_by_name_and_at_random(tmp_path):
    names = [*(f"Above{number}" for number in range(9)), *(f"Count[{number}]" for number in range(9)), "z"]
    for number, name in enumerate(names):
        write(tmp_path / f"{name}.json", task(number))
    assert chosen(tmp_path) == names
    assert chosen(tmp_path, tasks=["Count[3]", "Above*", "Above1"]) == [*names[:9], "Count[3]"]
    draws = [chosen(tmp_path, subsample_size=size, seed=3) for size in range(1, 20)]
    for fewer, more in itertools.pairwise(draws):
        assert set(fewer) < set(more)
    assert all(draw == sorted(draw, key=names.index) for draw in draws) and draws[-1] == names
    assert len({tuple(chosen(tmp_path, subsample_size=4, seed=seed)) for seed in range(9)}) > 5
    some = chosen(tmp_path, subsample_size=3, tasks=["Count*"])
    assert len(some) == 3 and all(name.startswith("Count") for name in some)


def test_a_built_dataset_of_partly_private_tasks(tmp_path, capsys):
    """Ignored labels are 0; no leak can be known of; the table says it all. Equal test inputs stay two examples."""
    twice = task(1) | {"test": hidden(task(1))["test"] * 2}
    leaked = task(2) | {"test": [*task(2)["train"][:1], *hidden(task(2))["test"]]}
    for name, one in {"twice": twice, "leaked": leaked}.items():
        write(tmp_path / f"in/evaluation/{name}.json", one)
    write(tmp_path / "in/training/plain.json", task(3))
    build(ArcConfig(dataset_dirs=[str(tmp_path / "in")], output_dir=str(tmp_path / "out"), num_aug=2))
    out, err = capsys.readouterr()
    assert "warning: 1 of the 1 test pairs are also in train" in err
    rows = [line.split() for line in out.splitlines()]
    assert rows[1:4] == [
        ["split", "tasks", "pairs", "puzzles", "examples"],
        ["train", "3", "7", "9", "21"],
        ["test", "2", "4", "6", "12"],
    ]
    assert out.splitlines()[4] == "3 of 4 test inputs have no answer and are not scored"
    inputs, labels = (np.load(tmp_path / f"out/test/all__{field}.npy") for field in ("inputs", "labels"))
    assert labels.any(1).tolist() == [True, False] * 3 + [False] * 6
    assert labels[0].tolist() == oracle_encode(leaked["test"][0]["output"])
    np.testing.assert_array_equal(inputs[6], inputs[7])
    assert inputs[6].tolist() == oracle_encode(twice["test"][0]["input"])
