"""What puzzle_visualizer.html makes of folders and files, in headless Chromium:
python -m pytest tests/test_visualizer_files.py
"""

import itertools
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from dataset.format import write_identifiers
from tests.browser import Page, chromium
from tests.sample_datasets import Arrays, build_arc, build_maze, digits, write_dataset


def test_identifiers_are_text_whatever_is_in_them(page, tmp_path):
    names = ['<img src=x onerror="document.title=1">', 'quote " \\ backslash', "ärger_t9_0123456789", "e\\"]
    tokens = np.tile(np.arange(1, 5), (4, 4))
    page.load().open(write_dataset(tmp_path / "names", tokens, tokens, vocab_size=6, names=names))
    assert page.texts("#groups .row span:first-child") == names
    for index, part in enumerate(["onerror=", '" \\', "GER_T9", "e\\"]):
        page.press("/")
        page.press(part)
        page.wait(lambda index=index: page.texts("#found button span:first-child") == [names[index]], part)
        page.press(Keys.ENTER)
        assert page.text("#title") == names[index]
    assert page.js("return document.title") == "Puzzle visualizer"


def test_a_folder_of_several_datasets_and_a_dropped_one(page, tmp_path):
    build_arc(tmp_path, num_aug=2)
    maze = build_maze(tmp_path)
    page.load("dataset=maze-30x30&split=test").open(tmp_path)
    assert page.fragment() == dict(dataset="maze-30x30", split="test", set="all", group="1", puzzle="1", example="1")
    page.select("#dataset", "arc")
    page.wait(lambda: page.fragment()["dataset"] == "arc")
    assert page.chosen("#kind") == "ARC"
    page.go("dataset=maze-30x30&split=test&group=2")
    page.wait(lambda: page.text("#details").startswith("test/all__inputs.npy[1] "))
    assert page.chosen("#dataset") == page.fragment()["dataset"] == "maze-30x30" and page.chosen("#kind") == "Maze"
    page.go("dataset=nowhere&group=2")
    assert "names dataset nowhere, which is not there" in page.text("#status")
    assert page.fragment()["dataset"] == "maze-30x30" and page.fragment()["group"] == "2"
    page.load("dataset=nowhere").open(tmp_path)
    assert "names dataset nowhere, which is not there" in page.text("#status")
    page.load().drop(maze)
    page.wait(lambda: page.boards() == ["Input", "Label"])
    assert not page.visible("#dataset") and page.text("#title") == "Puzzle 1"


def _named(folder: Path) -> Path:
    """A dataset whose puzzle has its name."""
    tokens = np.tile(np.arange(1, 5), (1, 4))
    return write_dataset(folder, tokens, tokens, vocab_size=6, names=[f"puzzle of {folder.name}"])


def test_what_cannot_be_opened_leaves_all_as_it_was(page, tmp_path):
    for name in ("first", "second"):
        _named(tmp_path / "all" / name)
    (tmp_path / "all" / "empty").mkdir()
    write_identifiers(tmp_path / "all" / "empty", [])
    page.load().open(tmp_path / "all")  # the first that can be
    said = "all/empty has no split: train/dataset.json is missing"
    assert page.text("#title") == "puzzle of first" and page.texts("#messages li") == [f"empty: {said}"]
    page.select("#dataset", "empty")
    page.wait(lambda: page.texts("#messages li") == [said])
    assert page.chosen("#dataset") == "first"
    page.go("dataset=empty")
    page.wait(lambda: page.fragment()["dataset"] == "first")
    page.drop(tmp_path / "all" / "empty")
    page.wait(lambda: page.texts("#messages li") == [said.removeprefix("all/")])
    page.select("#dataset", "second")
    page.wait(lambda: page.text("#title") == "puzzle of second")
    assert page.text("#messages") == "" and page.chosen("#dataset") == "second"


def test_what_was_chosen_last_is_shown_and_not_what_took_longest(page, tmp_path):
    slow, fast = (_named(tmp_path / name) for name in ("slow", "fast"))
    page.load().hold("slow/")
    page.choose(slow)
    page.open(fast)
    page.let_read()
    assert page.text("#title") == "puzzle of fast"


def test_an_example_that_cannot_be_read_is_not_shown_as_another(page, copy):
    page.load().open(copy)
    (copy / "train" / "all__inputs.npy").unlink()
    page.js("document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true }))")
    said = "train/all__inputs.npy can no longer be read; choose the folder again"
    page.wait(lambda: page.texts("#messages li") == [said])
    assert page.text("#title") == "Puzzle 2" and page.boards() == []
    page.settle()


DTYPES = ["|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"]


def test_any_integer_type(page, tmp_path, sudoku):
    """Each type in all five files, with ignored labels of -100 where it has them, and all versions of the header."""
    arrays = Arrays(sudoku)
    for number, dtype in enumerate(DTYPES):
        folder = tmp_path / "types" / dtype[1:]
        shutil.copytree(sudoku, folder)
        for field, values in vars(arrays).items():
            values = values.astype(np.int64)
            if field == "labels" and np.issubdtype(np.dtype(dtype), np.signedinteger):
                values[:, ::5] = -100
            with open(folder / "train" / f"all__{field}.npy", "wb") as file:
                np.lib.format.write_array(file, values.astype(dtype), version=(1 + number % 3, 0))
    page.load().open(tmp_path / "types")
    names = page.texts("#dataset option")
    assert len(names) == len(DTYPES) and page.text("#messages") == ""
    last = len(arrays.inputs) - 1
    for name in names:
        page.select("#dataset", name)
        page.wait(lambda name=name: page.fragment()["dataset"] == name)
        page.press(Keys.END)
        labels = arrays.labels[last].copy()
        if name.startswith("i"):
            labels[::5] = 0
        assert page.fragment()["group"] == "10" and page.fragment()["puzzle"] == "4"
        assert [cell["text"] for cell in page.cells(0, 9)] == digits(arrays.inputs[last]), name
        assert [cell["text"] for cell in page.cells(1, 9)] == digits(labels), name
        read_out = page.js("return document.querySelectorAll('#boards canvas')[1].ariaLabel")
        assert read_out.count("padding") == (labels == 0).sum(), name


@pytest.fixture
def copy(tmp_path, sudoku) -> Path:
    return Path(shutil.copytree(sudoku, tmp_path / "partial"))


def test_missing_files_are_named_and_the_other_split_opens(page, copy):
    fields = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    for field in fields:
        shutil.copytree(copy, copy.parent / "all" / field)
        (copy.parent / "all" / field / "train" / f"all__{field}.npy").unlink()
    page.load().open(copy.parent / "all")
    for field in fields:
        page.select("#dataset", field)
        page.wait(lambda field=field: page.texts("#messages li") == [f"train/all__{field}.npy is missing"], field)
        assert page.fragment()["split"] == "test" and page.texts("#split option") == ["test"]


def test_missing_descriptions_are_named(page, copy, tmp_path):
    (copy / "identifiers.json").unlink()
    (copy / "train" / "dataset.json").unlink()
    page.load().open(copy)
    assert page.texts("#messages li") == [
        "identifiers.json is missing in partial: puzzles have no names",
        "train/dataset.json is missing",
    ]
    shutil.rmtree(copy / "test")
    page.load().choose(copy)
    page.wait(lambda: page.texts("#messages li"))
    assert "train/dataset.json is missing" in page.texts("#messages li")
    assert page.visible("#choose")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "notes.txt").write_text("nothing")
    page.load().choose(tmp_path / "elsewhere")
    page.wait(lambda: "no dataset in elsewhere: identifiers.json is missing" in page.text("#messages"))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _in_fortran_order(path: Path) -> None:
    np.save(path, np.asfortranarray(np.load(path)))


def _as_floats(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def _big_endian(path: Path) -> None:
    np.save(path, np.load(path).astype(">i4"))


def _cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _one_row_less(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"train/all__labels.npy is truncated: 3,367 of 3,368 bytes"),
        (_in_fortran_order, r"train/all__labels.npy is in Fortran order"),
        (_as_floats, r"train/all__labels.npy does not hold little-endian integers: .*'<f4'"),
        (_big_endian, r"train/all__labels.npy does not hold little-endian integers: .*'>i4'"),
        (_cut_in_the_header, r"train/all__labels.npy is truncated"),
        (lambda path: path.write_text("plain text, not an array"), r"train/all__labels.npy is not a .npy file"),
        (_one_row_less, r"train/all__labels.npy and train/all__inputs.npy differ in length"),
        (lambda path: (path.parent / "dataset.json").write_text("{"), r"train/dataset.json is not valid JSON"),
        (lambda path: (path.parent.parent / "identifiers.json").write_text('["<blank>", "a'), "identifiers.json is"),
    ],
)
def test_a_damaged_file_is_named(page, copy, damage, message):
    damage(copy / "train" / "all__labels.npy")
    page.load().open(copy)
    (line,) = page.texts("#messages li")
    assert re.match(message, line), line


def _describe(**changes):
    def change(folder: Path) -> None:
        path = folder / "train/dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _array(field, values):
    return lambda folder: np.save(folder / f"train/all__{field}.npy", values)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
HOSTILE = {
    "train/dataset.json does not hold a JSON object": lambda folder: (folder / "train/dataset.json").write_text("null"),
    "train/dataset.json is a pointer of Git LFS": lambda folder: (folder / "train/dataset.json").write_text(LFS),
    "identifiers.json is a pointer of Git LFS": lambda folder: (folder / "identifiers.json").write_text(LFS),
    "train/all__inputs.npy is a pointer of Git LFS": lambda folder: (folder / "train/all__inputs.npy").write_text(LFS),
    "train/dataset.json is damaged: its sets is 5": _describe(sets=5),
    "train/dataset.json is damaged: its sets is []": _describe(sets=[]),
    'train/dataset.json is damaged: its seq_len is "16"': _describe(seq_len="16"),
    "train/dataset.json is damaged: its vocab_size is -1": _describe(vocab_size=-1),
    "train/dataset.json is damaged: its num_puzzle_identifiers is 1000000000000": _describe(
        num_puzzle_identifiers=10**12
    ),
    "train/all__group_indices.npy does not ascend from 0": _array("group_indices", np.r_[0, 8, 4, 12:41:4]),
    "train/all__puzzle_indices.npy does not ascend from 0": _array("puzzle_indices", np.r_[0, 2, 1, 3:41]),
    "train/all__puzzle_identifiers.npy names puzzles that there are not": _array(
        "puzzle_identifiers", np.full(40, 10**12)
    ),
    "train/all__inputs.npy has the shape (3240), not one of 2 axes": _array("inputs", np.ones(3240, np.uint8)),
}


def test_hostile_files_are_named(page, tmp_path, sudoku):
    """All in one folder, chosen one after another; each goes on with the other split."""
    folders = {f"damage-{number:02}": message for number, message in enumerate(HOSTILE)}
    for name, message in folders.items():
        HOSTILE[message](Path(shutil.copytree(sudoku, tmp_path / "all" / name)))
    page.load().open(tmp_path / "all")
    for name, message in folders.items():
        page.select("#dataset", name)
        page.wait(lambda name=name: page.fragment()["dataset"] == name, name)
        page.wait(lambda message=message: any(message in line for line in page.texts("#messages li")), message)
    assert page.console() == []


def test_a_byte_order_mark_and_a_wrong_escape_are_read_over(page, copy):
    for path in (copy / "train/dataset.json", copy / "identifiers.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    page.load().open(copy)
    assert page.texts("#messages li") == []
    (copy / "identifiers.json").write_text(r'["\x"]')
    page.load().open(copy)
    assert page.texts("#messages li") == []
    assert page.console() == []


@pytest.mark.slow
def test_8_gigabytes_open_in_seconds_and_little_memory(tmp_path):
    """As large as a full ARC build, a million names and 4 million examples, of which all but the last are padding."""
    puzzles, each, groups = 1_000_000, 4, 200_000
    folder, split = tmp_path / "arc-aug-1000", tmp_path / "arc-aug-1000" / "train"
    split.mkdir(parents=True)
    group = puzzles // groups
    maps = ["".join(colours) for colours in itertools.islice(itertools.permutations("123456789"), group)]
    names = [f"{n // group:08x}" + f"_t{n % 8}_0{maps[n % group]}" * (n % group > 0) for n in range(puzzles)]
    write_identifiers(folder, names)
    last = (np.arange(900) % 10 + 2).astype(np.uint8)
    for field in ("inputs", "labels"):
        with open(split / f"all__{field}.npy", "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (puzzles * each, 900)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + puzzles * each * 900)
            file.seek(-900, 2)
            file.write(last)
    np.save(split / "all__puzzle_identifiers.npy", np.arange(1, puzzles + 1, dtype=np.int32))
    np.save(split / "all__puzzle_indices.npy", np.arange(0, puzzles * each + 1, each, dtype=np.int32))
    np.save(split / "all__group_indices.npy", np.arange(0, puzzles + 1, group, dtype=np.int32))
    meta = dict(pad_id=0, ignore_label_id=0, blank_identifier_id=0, vocab_size=12, seq_len=900, sets=["all"])
    meta |= dict(num_puzzle_identifiers=puzzles + 1, total_groups=groups, mean_puzzle_examples=each)
    (split / "dataset.json").write_text(json.dumps(meta))
    with chromium() as fresh:  # the memory of no other page
        page = Page(fresh).load()
        started = time.monotonic()
        page.open(folder)
        took = time.monotonic() - started
        page.press(Keys.END)
        shown = [colour for row in page.pixels(0, 30) for colour in row]
        in_view = page.js(
            """const [row, list] = ["#groups .row[aria-selected=true]", "#groups"].map(selector =>
                 document.querySelector(selector).getBoundingClientRect());
               return row.top >= list.top - 1 && row.bottom <= list.bottom + 1"""
        )
        page.js("const list = document.querySelector('#groups'); list.scrollTop = list.scrollHeight / 2")
        near = range(groups // 2 - 100, groups // 2 + 100)  # before it is drawn anew, the list shows its end
        page.wait(lambda: int(page.texts("#groups .row span:first-child")[0], 16) in near)
        middle = page.texts("#groups .row span:first-child")[3]
        page.js("document.querySelectorAll('#groups .row')[3].click()")
        page.wait(lambda: page.text("#title") == middle and int(page.fragment()["group"]) < groups)  # it was the last
        title, number = page.text("#title"), int(page.fragment()["group"]) - 1
        page.press("/")
        page.press(names[-1])
        page.wait(lambda: page.texts("#found button span:first-child") == [names[-1]])
        assert page.console() == []
        peak = page.memory_peak()
    assert len(set(shown)) == 10 and shown == shown[:10] * 90  # colours 0 to 9 over and over
    assert in_view and title == middle == names[number * group] and abs(number - groups / 2) < 100
    assert took < 10, took
    assert peak < 300 * 2**20, peak / 2**20
