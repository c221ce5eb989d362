"""puzzle_visualizer.html in headless Chromium, on built datasets: python -m pytest tests/test_visualizer.py

What the page paints and writes is compared with the arrays on disk. Screenshots are left in tests/artefacts, or in the
folder that VISUALIZER_SCREENSHOTS names.
"""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from dataset import build_grid_dataset
from dataset.format import SplitWriter, write_identifiers
from puzzles.draw import DARK, PALETTE
from puzzles.kind import kind_of
from puzzles.maze import Maze
from scripts import share_looks
from tests.latin_squares import latin_dropped_in, write_source
from tests.sample_datasets import (
    REFERENCE,
    Arrays,
    as_other_tools_write_it,
    build_arc,
    build_maze,
    digits,
    write_dataset,
)

# The colours of the ARC testing interface, of 0 to 9.
ARC_COLOURS = [
    "#000000",
    "#0074d9",
    "#ff4136",
    "#2ecc40",
    "#ffdc00",
    "#aaaaaa",
    "#f012be",
    "#ff851b",
    "#7fdbff",
    "#870c25",
]
KIND_KEYS = ("kind", "rows", "columns", "symbols", "look")
MIRROR = {
    "rotated 90° counter-clockwise": np.rot90,
    "rotated 180°": lambda grid: np.rot90(grid, 2),
    "rotated 90° clockwise": lambda grid: np.rot90(grid, -1),
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "mirrored along the main diagonal": np.transpose,
    "mirrored along the other diagonal": lambda grid: np.rot90(np.transpose(grid), 2),
}


@pytest.fixture(scope="module")
def arc(tmp_path_factory) -> Path:
    return build_arc(tmp_path_factory.mktemp("arc"), num_aug=24)


@pytest.fixture(scope="module")
def maze(tmp_path_factory) -> Path:
    return build_maze(tmp_path_factory.mktemp("maze"))


# ---------- What is shown ----------


def test_arc_canvases_are_in_the_official_palette_with_padding_and_ends_faint(page, arc):
    arrays = Arrays(arc)
    page.load("split=train&group=4&puzzle=9&example=2&crop=0").open(arc)
    row = arrays.example(3, 8, 1)
    assert page.boards() == ["Input", "Label"]
    for board, tokens in enumerate((arrays.inputs[row], arrays.labels[row])):
        shown = page.pixels(board, 30)
        faint = {0: set(), 1: set()}
        for token, colour in zip(tokens.tolist(), itertools.chain(*shown), strict=True):
            if token >= 2:
                assert colour == ARC_COLOURS[token - 2]
            else:
                faint[token].add(colour)
        (pad,), (end,) = faint.values()
        assert pad != end and not {pad, end} & set(ARC_COLOURS)
        rows, columns = np.nonzero(tokens.reshape(30, 30) > 1)
        note = f"{np.ptp(rows) + 1} × {np.ptp(columns) + 1}"
        if rows.min() or columns.min():
            note += f", from row {rows.min() + 1}, column {columns.min() + 1}"
        assert page.texts(".panel .title span")[board] == note


def test_all_ten_colours(page, tmp_path):
    tokens = np.arange(900)[None] % 10 + 2
    page.load().open(write_dataset(tmp_path / "colours", tokens, tokens[:, ::-1], vocab_size=12))
    assert list(itertools.chain(*page.pixels(0, 30))) == ARC_COLOURS * 90
    assert list(itertools.chain(*page.pixels(1, 30))) == ARC_COLOURS[::-1] * 90


@pytest.mark.parametrize("crop", ["", "&crop=1"], ids=["as it comes", "a link of an earlier version"])
def test_a_grid_is_shown_alone_and_the_whole_canvas_on_demand(page, arc, crop):
    arrays = Arrays(arc)
    page.load(f"split=train&group=4&puzzle=9&example=2{crop}").open(arc)
    assert len(page.texts("#strip button")) == arrays.example(3, 9) - arrays.example(3, 8) and page.visible(
        "#strip button"
    )
    for board, fields in enumerate((arrays.inputs, arrays.labels)):
        wanted = grid(fields[arrays.example(3, 8, 1)])
        colours = [[ARC_COLOURS[token - 2] for token in row] for row in wanted.tolist()]
        assert page.pixels(board, wanted.shape[1]) == colours and len(wanted) < 30
    assert "crop" not in page.fragment() and not page.text("#legend")
    page.press("c")
    assert page.fragment()["crop"] == "0" and len(page.pixels(0, 30)) == 30
    assert sorted(page.texts("#legend span")) == ["end of the grid", "padding"]
    page.find("#whole").click()
    page.settle()
    assert "crop" not in page.fragment() and len(page.pixels(0, wanted.shape[1])) < 30


def test_words_say_what_an_arc_augmentation_does(page, arc):
    """The words alone, carried out with numpy, make the augmented grids of the original's."""
    arrays = Arrays(arc)
    page.load().open(arc)
    group, seen = 2, set()
    for puzzle in range(25):
        page.go(f"split=train&group={group + 1}&puzzle={puzzle + 1}")
        words = page.text("#words").lower()
        if puzzle == 0:
            assert words == "original"
            continue
        symmetry, _, colours = words.rpartition("colours ")
        symmetry = symmetry.strip("; ") or None
        seen.add(symmetry)
        table = np.arange(12)
        for pair in colours.split(", ") if colours else ():
            old, new = map(int, pair.split("→"))
            table[old + 2] = new + 2
        if seen >= set(MIRROR) and puzzle > 10:
            break
        for fields in (arrays.inputs, arrays.labels):
            original, augmented = (grid(fields[arrays.example(group, k)]) for k in (0, puzzle))
            expected = table[original] if symmetry is None else MIRROR[symmetry](table[original])
            np.testing.assert_array_equal(augmented, expected, err_msg=words)
    assert seen >= set(MIRROR)  # with 24 augmentations each one comes up
    assert len(page.texts("#colours span")) == len(colours.split(", "))


@pytest.mark.parametrize(("ignored", "dtype"), [(None, np.int32), (-100, np.int8), (255, np.uint8)])
def test_an_arc_dataset_of_another_builder(page, arc, tmp_path, ignored, dtype):
    """It looks like ours: the names are as they are, their augmentations are told in the same words."""
    theirs = shutil.copytree(arc, tmp_path / "arc")
    as_other_tools_write_it(theirs, ignored, dtype)
    shown = []
    for folder in (arc, theirs):
        page.load("split=test&group=2&puzzle=5").open(folder)
        shown.append((page.text("#words"), page.pixels(0, 30), page.pixels(1, 30)))
        assert page.text("#messages") == ""
    assert shown[0] == shown[1]
    name = json.loads((theirs / "identifiers.json").read_text())[Arrays(theirs, "test").puzzle_identifiers[25 + 4]]
    assert "|||t" in name and name in page.text("body")


def grid(tokens: np.ndarray) -> np.ndarray:
    """The colours of an ARC canvas, cut out."""
    canvas = tokens.reshape(30, 30)
    rows, columns = np.nonzero(canvas > 1)
    return canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_maze_copies_are_named_by_what_their_cells_show(page, maze):
    arrays = Arrays(maze)
    page.load().open(maze)
    boards = arrays.inputs[:8].reshape(8, 30, 30)
    for puzzle in range(1, 8):
        page.go(f"group=1&puzzle={puzzle + 1}")
        np.testing.assert_array_equal(MIRROR[page.text("#words").lower()](boards[0]), boards[puzzle])
    assert len(set(page.texts("#puzzles .row span:first-child"))) == 8


def test_mazes_show_walls_start_goal_and_path(page, maze):
    arrays = Arrays(maze, "test")
    page.load("split=test&group=2").open(maze)
    for board, tokens in enumerate((arrays.inputs[1], arrays.labels[1])):
        shown = list(itertools.chain(*page.pixels(board, 30, at=(0.08, 0.08))))  # beside the letters S and G
        names = ["none", "wall", "free", "start", "goal", "path"]
        assert shown == [PALETTE[names[token]] for token in tokens]
        letters = [{3: "S", 4: "G"}.get(token, "") for token in tokens.tolist()]
        assert [cell["text"] for cell in page.cells(board, 30, "SG")] == letters
    cells = int((arrays.labels[1] == 5).sum())
    assert page.texts(".panel .title span") == ["30 × 30", f"30 × 30, path of {cells} cells"]


def test_sudokus_tell_clues_from_filled_cells(page, sudoku):
    arrays = Arrays(sudoku)
    page.load("split=train&group=3&puzzle=2").open(sudoku)
    row = arrays.example(2, 1)
    question, answer = page.cells(0, 9), page.cells(1, 9)
    assert [cell["text"] for cell in question] == digits(arrays.inputs[row])
    assert [cell["text"] for cell in answer] == digits(arrays.labels[row])
    clues = arrays.inputs[row] > 1
    for cell, clue in zip(answer, clues, strict=True):
        assert cell["ink"] == PALETTE["clue" if clue else "answer"]
        assert (cell["ground"] == PALETTE["paper"]) != clue  # clues are shaded
    assert page.texts(".panel .title span") == [f"9 × 9, {clues.sum()} of 81 filled", "9 × 9, 81 of 81 filled"]
    assert page.text("#words") == "Augmentation 1"


SIX = ["123456", "456123", "231564", "564231", "312645", "645312"]


@pytest.mark.parametrize(("size", "rows", "columns"), [(4, 2, 2), (6, 2, 3), (9, 3, 3)])
def test_boxes_have_thick_borders(page, tmp_path, sudoku, size, rows, columns):
    folder = {4: REFERENCE / "pipeline" / "dataset", 9: sudoku}.get(size)
    if folder is None:
        tokens = np.array([[int(digit) + 1 for row in SIX for digit in row]])
        folder = write_dataset(tmp_path / "six", tokens, tokens, vocab_size=8)
    page.load().open(folder)
    heavy = PALETTE["box_line"]
    right = np.array(page.pixels(0, size, at=(0.999, 0.4)))
    below = np.array(page.pixels(0, size, at=(0.1, 0.999)))
    lines = np.arange(1, size + 1)
    np.testing.assert_array_equal(right == heavy, np.tile(np.isin(lines, range(columns, size, columns)), (size, 1)))
    np.testing.assert_array_equal(below == heavy, np.tile(np.isin(lines, range(rows, size, rows)), (size, 1)).T)


def test_other_vocabularies_show_as_numbers_and_the_kind_can_be_chosen(page, tmp_path, sudoku):
    tokens = np.arange(40).reshape(2, 20)
    page.load(width=2600).open(write_dataset(tmp_path / "odd", tokens, tokens[::-1], vocab_size=50))
    numbers = [str(n) for n in range(50)]
    assert [cell["text"] for cell in page.cells(0, 32, numbers)] == numbers[:20] + [""] * 12
    assert page.texts("#kind option") == ["Numbers"]
    page.load().open(sudoku)
    assert page.texts("#kind option") == ["Sudoku", "ARC", "Maze", "Numbers"]
    page.press("c")
    assert "crop" not in page.fragment()  # a Sudoku is no grid on a canvas
    page.select("#kind", "Numbers")
    assert [cell["text"] for cell in page.cells(0, 9, numbers)] == [str(n) for n in Arrays(sudoku).inputs[0]]
    page.select("#kind", "ARC")
    page.press("c")
    clues = Arrays(sudoku).inputs[0].tolist()
    shown = itertools.chain(*page.pixels(0, 9))
    assert all(colour == ARC_COLOURS[token - 2] for token, colour in zip(clues, shown, strict=True) if token > 1)


KAKURO = {  # a kind that nobody here has heard of, 3 rows by 5 columns
    "kind": "kakuro",
    "rows": 3,
    "columns": 5,
    "symbols": ["?", ".", "x", "ab", "é", "☃"],
    "look": {
        "fills": [None, None, "#204060", "goal", None, "#FFE0A0"],
        "glyphs": ["", "", "", "W", "é", "Q"],
        "boxes": [1, 2],
    },
}


def test_a_kind_never_heard_of_is_drawn_by_its_description(page, tmp_path):
    inputs = np.array([[1, 2, 3, 4, 5, 1, 1, 4, 1, 2, 5, 5, 0, 1, 4]])
    labels = np.array([[4, 2, 3, 4, 5, 4, 4, 4, 4, 2, 5, 5, 0, 4, 4]])
    page.load().open(write_dataset(tmp_path / "kakuro", inputs, labels, vocab_size=6, description=KAKURO))
    assert page.texts("#kind option")[0] == "Kakuro"
    fills = [PALETTE["paper"], PALETTE["paper"], "#204060", PALETTE["goal"], PALETTE["paper"], "#ffe0a0"]
    for board, tokens in enumerate((inputs[0].tolist(), labels[0].tolist())):
        cells = page.cells(board, 5, "WQé")
        assert [cell["text"] for cell in cells] == [KAKURO["look"]["glyphs"][token] for token in tokens]
        given = [token == 4 for token in inputs[0]]  # with a glyph on paper
        for cell, token, is_given in zip(cells, tokens, given, strict=True):
            if token == 4:
                assert (cell["ground"] != PALETTE["paper"]) == is_given
                assert cell["ink"] == PALETTE["clue" if is_given else "answer"]
            else:
                assert cell["ground"] == fills[token]
                assert cell["ink"] == {3: PALETTE["paper"], 5: PALETTE["ink"]}.get(
                    token
                )  # light on dark, dark on light
        right, below = (
            np.array(page.pixels(board, 5, at)) == PALETTE["box_line"] for at in ((0.999, 0.1), (0.1, 0.999))
        )
        assert (right == [False, True, False, True, False]).all()
        assert (below == [[True], [True], [False]]).all()
    assert page.texts(".panel .title span") == ["3 × 5, 9 of 15 filled", "3 × 5, 14 of 15 filled"]
    says = {0: "padding", 1: "blank", 2: "x", 3: "goal", 4: "é", 5: "☃"}
    wanted = f"Label, 3 rows and 5 columns: {', '.join(says[token] for token in labels[0].tolist())}"
    assert page.js("return document.querySelectorAll('#boards canvas')[1].ariaLabel") == wanted
    page.point(0, 2, 4, columns=5)
    page.wait(lambda: page.text("#readout") == "Row 3, column 5: input é, label é")
    page.screenshot("kakuro")
    page.load(dark=True).open(tmp_path / "kakuro")
    grounds = [cell["ground"] for cell in page.cells(0, 5)]
    dark = PALETTE | DARK
    assert grounds[:3] == [dark["paper"], "#204060", dark["goal"]] and dark["goal"] != PALETTE["goal"]


def test_a_kind_dropped_in_as_one_file_is_built_and_drawn(page, tmp_path):
    with latin_dropped_in(tmp_path / "path"):
        rows = write_source(tmp_path / "csv", train=3, test=1)
        files = {f"{split}_file": tmp_path / "csv" / f"{split}.csv" for split in ("train", "test")}
        build_grid_dataset.build(build_grid_dataset.GridConfig(kind="latin", output_dir=tmp_path / "latin", **files))
    page.load("split=test").open(tmp_path / "latin")
    assert page.texts("#kind option") == ["Latin", "ARC", "Maze", "Sudoku", "Numbers"]
    for board, text in enumerate(rows["test"][0]):
        assert [cell["text"] or "." for cell in page.cells(board, 4, "ABCD")] == list(text)


def test_a_rectangle_without_blanks_and_with_copies(page, tmp_path):
    """Nothing is to be filled in, so nothing is shaded; and no symmetry of a square is seen in its copies."""
    words = np.random.default_rng(0).permutation(15)
    copy = words.reshape(5, 3)[:, ::-1].ravel()  # mirrored, were it 5 × 3
    folder = tmp_path / "words"
    folder.mkdir()
    write_identifiers(folder, [])
    writer = SplitWriter(folder, "train", seq_len=15)
    boards = np.array([words, words, copy, copy]) + 1  # two puzzles of two examples
    writer.append(boards, boards, puzzle_identifiers=np.zeros(2, int), puzzle_sizes=[2, 2], group_sizes=[2])
    writer.finish(vocab_size=16, num_puzzle_identifiers=1)
    letters = ["", *"ABCDEFGHIJKLMNO"]
    description = json.loads((folder / "train" / "dataset.json").read_text())
    description |= {"kind": "words", "rows": 3, "columns": 5, "symbols": ["?", *letters[1:]]}
    description |= {"look": {"fills": [None] * 16, "glyphs": letters, "boxes": None}}
    (folder / "train" / "dataset.json").write_text(json.dumps(description))
    page.load("puzzle=2").open(folder)
    cells = page.cells(0, 5, letters[1:])
    assert [cell["text"] for cell in cells] == [letters[token] for token in boards[2]]
    assert {(cell["ground"], cell["ink"]) for cell in cells} == {(PALETTE["paper"], PALETTE["ink"])}
    assert page.texts(".panel .title span") == ["3 × 5", "3 × 5"]
    assert page.text("#words") == "Augmentation 1"
    assert not page.visible("#strip-section")  # small pictures of letters could not be read


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 4}, "rows and columns"),
        ({"symbols": ["?"]}, "symbols"),
        ({"symbols": None, "look": None}, "symbols, look.fills, look.glyphs"),
        ({"look": KAKURO["look"] | {"fills": [None] * 5 + ["red"]}}, "look.fills"),
        ({"look": KAKURO["look"] | {"glyphs": [1] * 6}}, "look.glyphs"),
        ({"look": KAKURO["look"] | {"boxes": [0, 2]}}, "look.boxes"),
        ({"kind": 7}, "kind"),
    ],
)
def test_a_description_that_cannot_be_drawn_is_said(page, tmp_path, change, named):
    tokens = np.arange(15)[None] % 6
    folder = write_dataset(tmp_path / "odd", tokens, tokens, vocab_size=6, description=KAKURO | change)
    page.load().open(folder)
    message = f"train/dataset.json: {named} cannot be drawn, or do not fit seq_len and vocab_size"
    assert page.text("#messages li").startswith(message)
    assert page.texts("#kind option") == ["Numbers"]


SMALL_MAZE = ["S##G", " ## ", "    ", "####"]
SMALL_SUDOKU = ["1...", "..1.", ".1..", "...1"]


def test_a_small_maze_and_a_small_sudoku_are_told_apart_by_their_cells(page, tmp_path):
    """Both have 16 cells and 6 tokens; each set counts, and one puzzle that no maze can be makes it a Sudoku."""
    question = np.array([["?# SGo".index(sign) for row in SMALL_MAZE for sign in row]])
    answer = np.where(question == 2, 5, question)
    sudoku = np.array([[1 if sign == "." else int(sign) + 1 for row in SMALL_SUDOKU for sign in row]])
    two_starts, no_goal = question.copy(), question.copy()
    two_starts[0, 15], no_goal[no_goal == 4] = 3, 2
    for name, inputs, kind in [
        ("maze", question, "Maze"),
        ("sudoku", sudoku, "Sudoku"),
        ("answered", answer, "Sudoku"),
        ("two-starts", two_starts, "Sudoku"),
        ("no-goal", no_goal, "Sudoku"),
        ("mixed", np.concatenate([question, sudoku]), "Sudoku"),
    ]:
        page.load().open(write_dataset(tmp_path / name, inputs, inputs, vocab_size=6))
        chosen = page.js("return document.querySelector('#kind').selectedOptions[0].text")
        assert chosen == page.texts("#kind option")[0] == kind, name
        described = kind_of(json.loads((tmp_path / name / "train" / "dataset.json").read_text()), [inputs], name)
        assert described.name == kind.lower(), name  # Python says the same
        if kind == "Maze":
            names = ["none", "wall", "free", "start", "goal"]
            shown = itertools.chain(*page.pixels(0, 4, at=(0.08, 0.08)))
            assert list(shown) == [PALETTE[names[token]] for token in question[0]]
    sets = write_dataset(tmp_path / "sets", question, question, vocab_size=6) / "train"
    other = write_dataset(tmp_path / "other", sudoku, sudoku, vocab_size=6) / "train"
    for path in other.glob("all__*.npy"):
        shutil.copy(path, sets / path.name.replace("all", "more"))
    description = json.loads((sets / "dataset.json").read_text()) | {"sets": ["all", "more"]}
    (sets / "dataset.json").write_text(json.dumps(description))
    page.load().open(sets.parent)
    assert page.texts("#kind option")[0] == "Sudoku"
    description = Maze(4, 4).describe()  # what is said counts, whatever the cells look like
    page.load().open(write_dataset(tmp_path / "said", sudoku, sudoku, vocab_size=6, description=description))
    assert page.js("return document.querySelector('#kind').selectedOptions[0].text") == "Maze"


def test_old_datasets_of_every_kind_look_as_those_that_say_it(page, arc, maze, sudoku, tmp_path):
    for folder in (arc, maze, sudoku):
        page.load("split=test").open(folder)
        kinds = page.texts("#kind option")
        picture = "return Array.from(document.querySelectorAll('#boards canvas'), canvas => canvas.toDataURL())"
        said = page.js(picture)
        old = Path(shutil.copytree(folder, tmp_path / folder.name))
        for path in old.glob("*/dataset.json"):
            description = json.loads(path.read_text())
            assert description.pop("kind")
            path.write_text(json.dumps({key: description[key] for key in description if key not in KIND_KEYS}))
        page.load("split=test").open(old)
        assert (page.texts("#kind option"), page.js(picture)) == (kinds, said)


def test_the_page_holds_what_python_draws_with():
    """After a change to the palette or to a look: python scripts/share_looks.py"""
    page = share_looks.PAGE.read_text(encoding="utf-8")
    assert share_looks.with_block(page) == page
    shared = json.loads(page.partition('<script type="application/json" id="kinds">')[2].partition("</script>")[0])
    assert shared["light"] == PALETTE and set(shared["dark"]) == set(PALETTE) and DARK.items() <= shared["dark"].items()
    assert [kind["kind"] for kind in shared["kinds"]] == ["arc", "maze", "sudoku", "sudoku", "sudoku"]


def test_a_cell_is_read_out_under_the_pointer(page, arc):
    arrays = Arrays(arc)
    page.load("split=train&group=1&crop=0").open(arc)
    row, column = 2, 1
    page.point(0, row, column, columns=30)
    names = ["black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "light blue", "maroon"]
    say = ["padding", "end of grid", *(f"{colour} {name}" for colour, name in enumerate(names))]
    cell = 30 * row + column
    wanted = f"Row 3, column 2: input {say[arrays.inputs[0, cell]]}, label {say[arrays.labels[0, cell]]}"
    page.wait(lambda: page.text("#readout") == wanted)
    page.press(Keys.ARROW_RIGHT)
    assert page.text("#readout") == "Point at a cell to read it."


# ---------- Moving about ----------


def test_keyboard(page, arc):
    arrays = Arrays(arc)
    page.load("split=train").open(arc)

    def place() -> tuple[int, int, int]:
        entries = page.fragment()
        return tuple(int(entries[level]) - 1 for level in ("group", "puzzle", "example"))

    assert place() == (0, 0, 0)
    page.press(*[Keys.ARROW_RIGHT] * 9)
    assert place() == arrays.locate(9)
    page.press(*[Keys.ARROW_LEFT] * 2)
    assert place() == arrays.locate(7)
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert place() == (2, 0, 0)
    page.press(Keys.ARROW_RIGHT, shift=True)
    assert place() == (2, 1, 0)
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, shift=True)
    assert place() == (1, int(np.diff(arrays.group_indices)[1]) - 1, 0)
    page.press(Keys.ARROW_UP)
    assert place() == (0, 0, 0)
    page.press(Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert place() == (0, 0, 0)
    page.press(Keys.END)
    assert place() == arrays.locate(len(arrays.inputs) - 1)
    page.press(Keys.ARROW_RIGHT)
    assert place() == arrays.locate(len(arrays.inputs) - 1)
    page.press(Keys.HOME)
    assert place() == (0, 0, 0)
    page.find("#puzzles").click()  # in a list the arrows go along it
    group, puzzle, _ = place()
    page.press(Keys.ARROW_DOWN)
    assert place() == (group, puzzle + 1, 0)
    page.press("?")
    assert page.visible("#help table")
    page.press(Keys.ESCAPE)
    assert not page.visible("#help table")


def test_a_held_key_goes_on_and_the_address_follows(page, arc):
    """Browsers refuse to change the address too often: Chromium 200 times in 10 seconds, with a warning."""
    page.load("split=train").open(arc)
    press = "dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', repeat: true, bubbles: true }))"
    page.js(f"for (let i = 0; i < 300; i++) document.body.{press}")
    levels = zip(("group", "puzzle", "example"), Arrays(arc).locate(300), strict=True)
    wanted = {level: str(index + 1) for level, index in levels}
    page.wait(lambda: wanted.items() <= page.fragment().items(), f"{wanted}, not {page.fragment()}")
    page.settle()
    assert page.text("#details").startswith("train/all__inputs.npy[300] ")


def test_an_address_leads_to_its_place(page, arc, sudoku):
    arrays = Arrays(arc, "test")
    page.load("split=test&set=all&group=2&puzzle=5&example=1")
    assert "split test, set all, group 2, puzzle 5" in page.text("#pending")
    page.open(arc)
    row = arrays.example(1, 4)
    assert page.text("#details").startswith(f"test/all__inputs.npy[{row}] ")
    page.go("split=train&set=all&group=3&puzzle=2&example=2")
    assert page.text("#details").startswith(f"train/all__inputs.npy[{Arrays(arc).example(2, 1, 1)}] ")
    assert not page.visible("#status")
    page.go("split=nowhere&group=999&puzzle=0")
    assert page.fragment() == {"split": "train", "set": "all", "group": "7", "puzzle": "1", "example": "1"}
    assert "names split nowhere, group 999, puzzle 0, which is not there" in page.text("#status")


def test_search_finds_tasks_augmentations_and_numbers(page, arc):
    names = json.loads((arc / "identifiers.json").read_text())
    page.load("split=train").open(arc)
    page.press("/")
    page.press("D511F")  # in any case
    page.wait(lambda: page.texts("#found button") == ["d511f18025 variants"])
    page.press(Keys.ENTER)
    assert page.text("#title") == "d511f180"
    name = names[30]
    page.press("/")
    page.press(name.partition("_")[2])
    page.wait(lambda: page.texts("#found button span:first-child") == [name])
    page.press(Keys.ARROW_DOWN, Keys.ENTER)
    assert name in page.text("#details")
    page.press("/")
    page.press("7")
    page.wait(lambda: "Pair 7 of the set" in page.texts("#found button span:first-child"))
    page.js("[...document.querySelectorAll('#found button')].find(b => b.textContent.startsWith('Pair 7')).click()")
    page.settle()
    assert page.text("#details").startswith("train/all__inputs.npy[6] ")
    page.select("#split", "test")
    page.press("/")
    page.press("d511f180")
    page.wait(lambda: page.texts("#found") == ["Not in test/all, but in another split or set."])


def test_results_do_not_open_behind_who_left_the_search(page, maze):
    page.load().open(maze)
    page.js(
        """
        let last = 0;
        window.late = new Map();
        window.setTimeout = run => { late.set(++last, run); return last; };
        window.clearTimeout = timer => late.delete(timer);"""
    )
    for keys, is_open in (("1",), True), (("2", Keys.TAB, Keys.TAB), False):
        page.js("document.querySelector('#search').value = ''; document.activeElement.blur()")
        page.press("/")
        page.press(*keys)
        page.js("for (const run of late.values()) run()")
        assert page.visible("#found button") == is_open, keys


def test_the_focus_stays_in_the_strip(page, arc):
    page.load("split=test").open(arc)
    page.js("document.querySelector('#strip button').focus()")
    for number in ("1", "2"):
        page.press(Keys.ENTER)  # a demonstration of train
        assert page.js("return document.activeElement.ariaLabel") == f"Pair {number}"
        assert page.js("return document.activeElement.ariaCurrent") == "true"
        page.press(Keys.TAB)


# ---------- Looks ----------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(page, arc, sudoku, maze, width, dark):
    look = f"{width}-{'dark' if dark else 'light'}"
    size = dict(width=width, height=844 if width < 600 else 860, dark=dark)
    page.load(**size)
    page.screenshot(f"welcome-{look}")
    for name, folder in (("arc", arc), ("sudoku", sudoku), ("maze", maze)):
        page.load("split=train&group=3&puzzle=4", **size).open(folder)
        page.screenshot(f"{name}-{look}")
        for narrow in (width, 360):
            page.resize(narrow, size["height"])
            page.wait(lambda narrow=narrow: page.js("return document.documentElement.scrollWidth") <= narrow, narrow)
        background = page.js("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) == dark
    unnamed = """return [...document.querySelectorAll("button, input, select, [role=listbox]")].filter(node =>
        node.checkVisibility() && !(node.ariaLabel || node.textContent.trim() || node.labels?.length || node.placeholder
        || node.getAttribute("aria-labelledby"))).map(node => node.outerHTML)"""
    assert page.js(unnamed) == []
    if width < 600:  # fingers need about 40 pixels
        small = """return [...document.querySelectorAll("main button, header button, header select")].filter(node =>
            node.checkVisibility() && node.getBoundingClientRect().height < 40).map(node => node.outerHTML)"""
        assert page.js(small) == []


def test_long_names_do_not_widen_the_page(page, tmp_path):
    long, tokens = "unbroken" * 25, np.tile(np.arange(1, 5), (2, 4))
    for name in (long, "other"):
        write_dataset(tmp_path / "all" / name, tokens, tokens, vocab_size=6, names=[long, f"{long}2"])
    page.load(f"dataset={long}").open(tmp_path / "all")
    page.press("/")
    page.press("unbroken")
    page.wait(lambda: page.visible("#found button"))
    for width in (1280, 390):
        page.resize(width, 844)
        page.wait(lambda width=width: page.js("return document.documentElement.scrollWidth") <= width, width)
        assert page.js("const found = document.querySelector('#found'); return found.scrollWidth <= found.clientWidth")


def test_the_colour_scheme_can_be_chosen_and_is_kept(page, maze):
    page.load(dark=True).open(maze)
    wall = page.pixels(0, 30)
    page.find("#theme").click()
    page.settle()
    assert page.text("#theme") == "◐ Light" and page.pixels(0, 30) != wall
    page.load(dark=True)
    assert page.js("return getComputedStyle(document.documentElement).colorScheme") == "light"
    page.find("#theme").click()
    page.find("#theme").click()
    assert page.text("#theme") == "◐ As the system"


def test_grids_of_ones_own_are_drawn_by_their_glyphs_and_cropped(page, tmp_path):
    (tmp_path / "symbols.yaml").write_text('a: {colour: "#204060"}\n"♛": {glyph: "Q"}\n', encoding="utf-8")
    records = [{"input": ["a♛.", "..a"], "output": ["♛"]}, {"input": ["a...."] * 4, "output": ["aaa", "♛.."]}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build_grid_dataset.build(
        build_grid_dataset.GridConfig(
            input_file=tmp_path / "pairs.jsonl", output_dir=tmp_path / "own", test_fraction=0,
            symbols=tmp_path / "symbols.yaml",
        )
    )  # fmt: skip
    page.load().open(tmp_path / "own")
    assert page.texts("#kind option")[0] == "Grid"
    assert page.texts(".panel .title span") == ["2 × 3", "1 × 1"]
    cells = page.cells(0, 3, "aQ.")
    assert [cell["text"] for cell in cells] == ["a", "Q", ".", ".", ".", "a"]
    assert [cell["ground"] for cell in cells] == ["#204060", *[PALETTE["paper"]] * 4, "#204060"]
    label = page.js("return document.querySelectorAll('#boards canvas')[1].ariaLabel")
    assert label.startswith("Label, 1 rows and 1 columns: ♛, end of grid, padding"), label
    page.screenshot("own")


def test_an_id_of_ones_own_is_no_augmentation_of_another(page, tmp_path):
    """Even if it is called like one of ARC."""
    names = ["a", "a_t1_0213456789"]
    lines = [json.dumps({"input": text, "output": text, "id": name}) for text, name in zip("xy", names, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    build_grid_dataset.build(
        build_grid_dataset.GridConfig(
            input_file=tmp_path / "pairs.jsonl", output_dir=tmp_path / "own", test_fraction=0, identifiers=True
        )
    )
    page.load().open(tmp_path / "own")
    assert page.texts("#groups .row > span:first-child") == names
    page.set("#search", "a_t1")
    page.wait(lambda: page.texts("#found button span:first-child") == names[1:])
