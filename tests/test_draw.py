"""Boards as text and as pictures: python -m pytest tests/test_draw.py"""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor

from puzzles.arc import Arc
from puzzles.draw import PALETTE, board_image, board_lines, draw_frames, in_rows, puzzle_image, save_gif, side_by_side
from puzzles.kind import Kind, Look, Puzzle, find_kind
from puzzles.maze import Maze
from puzzles.sudoku import Sudoku
from tests.arc_oracle import oracle_encode
from tests.latin_squares import latin_dropped_in

RGB = {name: ImageColor.getrgb(colour) for name, colour in PALETTE.items()}


def sudoku(text: str) -> np.ndarray:
    return np.array(["?.123456789".index(c) for c in text], np.uint8)


def maze(*lines: str) -> np.ndarray:
    return np.array(["?# SGo".index(c) for c in "".join(lines)], np.uint8)


def mark(cells: int, *changed: int) -> np.ndarray:
    return np.isin(np.arange(cells), changed)


def test_the_palette_has_the_names_that_others_use():
    wanted = "ink paper line box_line clue answer changed wrong right wall free path start goal none"
    assert set(PALETTE) == {*wanted.split(), *(f"arc_{colour}" for colour in range(10))}
    assert all(len(colour) == 7 and colour[0] == "#" for colour in PALETTE.values())


def test_sudokus_as_text():
    tokens = sudoku("12..34....123.4.")
    tokens[3] = 0  # what a model may say: no token of a Sudoku
    assert board_lines(Sudoku(4, 4), tokens) == ["1 2 │ . . ", "3 4 │ . . ", "────┼─────", ". . │ 1 2 ", "3 . │ 4 . "]
    changed = board_lines(Sudoku(4, 4), tokens, mark(16, 0, 3, 14))
    assert changed == ["1*2 │ . .*", "3 4 │ . . ", "────┼─────", ". . │ 1 2 ", "3 . │ 4*. "]
    assert board_lines(Sudoku(4, 4), tokens, mark(16, 0, 3, 14), colour=True) == changed  # no cell is filled
    six = board_lines(Sudoku(6, 6), sudoku("123456" * 6))
    assert six[:3] == ["1 2 3 │ 4 5 6 ", "1 2 3 │ 4 5 6 ", "──────┼───────"]
    nine = board_lines(Sudoku(9, 9), sudoku("." * 81))
    assert nine[2:5] == [". . . │ . . . │ . . . ", "──────┼───────┼───────", ". . . │ . . . │ . . . "]
    assert [line.startswith("─") for line in nine] == [False] * 3 + [True] + [False] * 3 + [True] + [False] * 3


def test_mazes_as_text():
    tokens = maze("So#", " o ", "##G")
    assert board_lines(Maze(3, 3), tokens) == ["So#", " o ", "##G"]
    assert board_lines(Maze(3, 3), tokens, mark(9, 1, 2, 3, 8)) == ["S+!", "-o ", "##!"]
    tokens[4] = 0
    assert board_lines(Maze(3, 3), tokens, mark(9, 0), colour=True) == ["!o#", " ? ", "##G"]


def test_arc_grids_as_text():
    tokens = np.array(oracle_encode([[0, 1], [9, 4]]))
    assert board_lines(Arc(30, 30), tokens) == ["0 1 ", "9 4 "]
    assert board_lines(Arc(30, 30), tokens, mark(900, 1, 30, 5)) == ["0 1*", "9*4 "]
    # The nearest colours of xterm's cube: 16 is black, 32 and 88 are blue and brown, 220 is yellow, with black on it.
    assert board_lines(Arc(30, 30), tokens, mark(900, 1), colour=True) == [
        "\x1b[38;5;231;48;5;16m0 \x1b[0m\x1b[38;5;231;48;5;32m1*\x1b[0m",
        "\x1b[38;5;231;48;5;88m9 \x1b[0m\x1b[38;5;16;48;5;220m4 \x1b[0m",
    ]
    assert board_lines(Arc(30, 30), np.zeros(900, int)) == ["(no grid)"]


def test_boards_beside_one_another():
    colour = "\x1b[38;5;16;48;5;220m4 \x1b[0m"
    columns = [("one", ["ab", "cd"]), ("2", [colour]), ("three", ["x", "y", "z"])]
    lines = ["one   2    three", f"ab    {colour}   x", "cd         y", "           z"]
    assert side_by_side(columns).split("\n") == lines
    assert in_rows(columns, width=16) == side_by_side(columns)
    assert in_rows(columns, width=15) == f"{side_by_side(columns[:2])}\n\n{side_by_side(columns[2:])}"
    assert in_rows(columns, width=1).count("\n\n") == 2


def cells_of(image: Image.Image, rows: int, columns: int) -> list[list[dict]]:
    """How often each colour stands inside each cell, away from the lines."""
    pixels = np.asarray(image)
    cell = (image.width - 3) // columns
    assert pixels.shape == (cell * rows + 3, cell * columns + 3, 3)
    found = []
    for r in range(rows):
        found.append([])
        for c in range(columns):
            inside = pixels[cell * r + 4 : cell * (r + 1) - 2, cell * c + 4 : cell * (c + 1) - 2].reshape(-1, 3)
            colours, counts = np.unique(inside, axis=0, return_counts=True)
            found[-1].append(dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True)))
    return found


def background(cell: dict) -> tuple[int, int, int]:
    return max(cell, key=cell.get)


def near(colour: tuple[int, int, int], other: tuple[int, int, int], most: int) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= most


def test_a_sudoku_as_a_picture():
    puzzle, answer = sudoku("12.............."), sudoku("13.4.......2...1")
    solution = sudoku("1234341221434321")
    cells = cells_of(board_image(Sudoku(4, 4), answer, puzzle, changed=mark(16, 3, 6), solution=solution), 4, 4)
    kept, clue_lost, blank, right = cells[0]
    assert background(kept) == background(cells[3][3]) == RGB["paper"]
    assert RGB["clue"] in kept
    assert RGB["answer"] not in kept
    assert RGB["wrong"] in clue_lost
    assert RGB["answer"] in right and RGB["clue"] not in right and background(right) != RGB["paper"]  # changed
    assert RGB["answer"] in cells[3][3]
    assert RGB["wrong"] in cells[2][3]  # a 2 where the solution has a 3
    assert len(blank) == 1  # no glyph in a blank cell,
    assert background(blank) == background(clue_lost) != RGB["paper"]  # but the tint of what is wrong
    assert background(cells[1][2]) == background(clue_lost)  # changed and wrong
    assert not any(RGB["changed"] in cell for row in cells for cell in row)  # a tint, no frame
    bold, light = (sum(count for colour, count in cell.items() if near(colour, ink, 60)) for cell, ink in
                   ((kept, RGB["clue"]), (cells[3][3], RGB["answer"])))  # fmt: skip
    assert bold > 1.2 * light  # the same digit


def test_heavy_lines_stand_around_boxes():
    pixels = np.asarray(board_image(Sudoku(6, 6), sudoku("." * 36)))
    middle = 80 // 2
    dark = (pixels == RGB["box_line"]).all(-1)
    at = [dark[80 * line : 80 * line + 3, middle].sum() for line in range(7)]
    assert at == [3, 0, 3, 0, 3, 0, 3]  # boxes of 2 rows
    assert [dark[middle, 80 * line : 80 * line + 3].sum() for line in range(7)] == [3, 0, 0, 3, 0, 0, 3]
    assert (pixels[80:83, middle] == RGB["line"]).all(-1).sum() == 1
    assert (np.asarray(board_image(Maze(3, 3), maze("S##", "###", "##G"))) != RGB["box_line"]).any(-1).all()


def test_a_maze_as_a_picture():
    puzzle, answer = maze("S #", "  #", "# G"), maze("So#", "oo#", "# G")
    solution = maze("S #", "oo#", "#oG")
    cells = cells_of(board_image(Maze(3, 3), answer, puzzle, changed=mark(9, 1), solution=solution), 3, 3)
    backgrounds = [background(cell) for row in cells for cell in row]
    names = ["start", "path", "wall", "path", "path", "wall", "wall", "free", "goal"]
    assert backgrounds == [RGB[name] for name in names]
    wrong = [RGB["wrong"] in cell for row in cells for cell in row]
    assert wrong == mark(9, 1, 7).tolist()  # one too many, one too few
    framed = [RGB["changed"] in cell for row in cells for cell in row]
    assert framed == mark(9, 1).tolist()
    assert all(RGB["paper"] in cells[at][at] for at in (0, 2))  # the letters
    odd = board_image(Maze(2, 2), np.array([0, 3, 4, 1]))
    assert background(cells_of(odd, 2, 2)[0][0]) == RGB["none"]


def test_mazes_of_any_size_fit():
    for size in (2, 30, 100, 200):
        image = board_image(Maze(size, size), np.full(size * size, 2, np.uint8))
        assert image.width == image.height
        assert 240 <= image.width <= 803
    assert board_image(Maze(30, 30), np.full(900, 2), pixels=240).width == 8 * 30 + 3


def test_an_arc_grid_beside_its_answer():
    puzzle = Puzzle(Arc(30, 30), np.array(oracle_encode([[1, 2], [3, 4]])), task="abc")
    tokens = np.array(oracle_encode([[5, 6, 7], [8, 9, 0]]))
    answer = SimpleNamespace(tokens=tokens, changed=mark(900, 0, 500), confidence=0.5)
    image = puzzle_image(puzzle, answer, (3, 3))
    side = (image.width - 20) // 2
    left = cells_of(image.crop((0, 0, side, image.height)), 3, 3)
    right = cells_of(image.crop((side + 20, 0, image.width, image.height)), 3, 3)
    paper = [RGB["paper"]]
    arc = [RGB[f"arc_{colour}"] for colour in range(10)]
    assert [[background(cell) for cell in row] for row in left] == [arc[1:3] + paper, arc[3:5] + paper, 3 * paper]
    assert [[background(cell) for cell in row] for row in right] == [arc[5:8], [arc[8], arc[9], arc[0]], 3 * paper]
    assert [RGB["changed"] in cell for row in right for cell in row] == mark(9, 0).tolist()
    assert background(cells_of(board_image(Arc(30, 30), np.zeros(900, int)), 1, 1)[0][0]) == RGB["paper"]
    # A picture of the puzzle alone is as large: frames of an animation do not jump.
    assert puzzle_image(puzzle, None, (3, 3)).size == image.size


def test_a_dropped_in_kind_is_drawn_from_its_symbols_and_look(tmp_path):
    with latin_dropped_in(tmp_path):
        latin = find_kind("latin").of_cells(4)
    tokens, puzzle = np.array([2, 3, 3, 2]), np.array([2, 1, 1, 1])
    assert board_lines(latin, tokens) == ["A B ", "B A "]
    assert board_lines(latin, tokens, mark(4, 1)) == ["A B*", "B A "]
    cells = cells_of(board_image(latin, tokens, puzzle, changed=mark(4, 1)), 2, 2)
    assert RGB["clue"] in cells[0][0]
    assert all(RGB["answer"] in cell for cell in (cells[0][1], *cells[1]))
    assert background(cells[0][1]) != background(cells[1][0]) == RGB["paper"]


class Oblong(Kind):
    """Not square, with boxes, a fill and a colour of its own."""

    name = "oblong"
    symbols = ("?", "a", "b")
    look = Look(fills=(None, "#123456", None), glyphs=("", "", "b"), boxes=(1, 3))

    @classmethod
    def of_cells(cls, cells):
        raise ValueError

    def valid(self, inputs, answers):
        return np.ones(answers.shape[:-1], bool)

    def violations(self, inputs, answer):
        return []


def test_boards_that_are_not_square():
    kind, tokens = Oblong(2, 4), np.array([1, 2, 1, 2, 2, 2, 2, 1])
    assert board_lines(kind, tokens, mark(8, 7)) == ["a b a │ b ", "──────┼───", "b b b │ a*"]
    painted = board_lines(kind, tokens, colour=True)[0]
    assert painted.startswith("\x1b[38;5;231;48;5;23ma \x1b[0mb ")
    cells = cells_of(board_image(kind, tokens), 2, 4)
    assert background(cells[0][0]) == background(cells[1][3]) == (0x12, 0x34, 0x56)
    assert background(cells[0][1]) == RGB["paper"]


@pytest.mark.parametrize(
    ("puzzle", "answers"),
    [
        (Puzzle(Sudoku(4, 4), sudoku("1...............")), [sudoku("1234341221434321")] * 2),
        (Puzzle(Maze(3, 3), maze("S #", "  #", "# G")), [maze("S #", "oo#", "#oG")]),
        (
            Puzzle(Arc(30, 30), np.array(oracle_encode([[1, 2]])), task="abc"),
            [np.array(oracle_encode([[1] * 30])), np.zeros(900, int), np.array(oracle_encode([[1]] * 30))],
        ),
    ],
    ids=["sudoku", "maze", "arc"],
)
def test_frames_of_an_animation(puzzle, answers, tmp_path):
    size = puzzle.kind.seq_len
    found = [SimpleNamespace(tokens=tokens, changed=mark(size, 3), confidence=0.5) for tokens in answers]
    verdict = SimpleNamespace(valid=False, text="not valid: " + "many words " * 40)
    frames = draw_frames(puzzle, found, verdict)
    assert len(frames) == 1 + len(answers)
    assert len({frame.size for frame in frames}) == 1
    below = [np.asarray(frame)[-50:] for frame in frames]  # the lines of the verdict
    assert [(lines == RGB["wrong"]).all(-1).any() for lines in below] == [False] * len(answers) + [True]
    if puzzle.kind == Arc(30, 30):  # the largest grid of all of them fits: 30 cells of colour 1 in a row, or one below
        blue = [(np.asarray(frame) == RGB["arc_1"]).all(-1) for frame in (frames[1], frames[3])]
        assert [int(row.any(axis=axis).sum()) for row, axis in zip(blue, (0, 1), strict=True)] == pytest.approx(
            [30 * 15 + 15, 30 * 15], abs=30
        )
    file = io.BytesIO()
    save_gif(frames, file)
    save_gif(draw_frames(puzzle, found, verdict), tmp_path / "again.gif")
    assert (tmp_path / "again.gif").read_bytes() == file.getvalue()
    gif = Image.open(file)
    durations = []
    for n in range(gif.n_frames):
        gif.seek(n)
        durations.append(gif.info["duration"])
    assert sum(durations) == 900 * len(answers) + 3500
