"""Square mazes, in which a path is to be drawn from a start to a goal.

Tokens are PAD 0 and the characters of `# SGo` as 1–5, row by row: wall, free, start, goal, path. An answer is right
when S, G and the path cells form one path, each cell beside only the one before and the one after it, and nothing else
has changed; the path need not be a shortest one.

People write a square of lines: walls `#`, free cells (a blank, or `.`, which editors do not cut off at the end of a
line), one start `S`, one goal `G`. It may also be a single line, as in the CSV files. A path drawn in with `o` is taken
out.
"""

from collections import Counter
from collections.abc import Iterator
from math import isqrt

import numpy as np

from errors import UserError
from puzzles.kind import PAD, Encoded, Kind, Look, Places, Puzzle, Transform, hash_rows, shown
from puzzles.symmetry import dihedral_transform

CHARACTERS = "# SGo"  # tokens from 1
WALL, FREE, START, GOAL, PATH = range(1, 6)
_TYPED = {character: token for token, character in enumerate(CHARACTERS, start=1)} | {".": FREE, "o": FREE}
_NAMES = {WALL: "a wall", FREE: "a free cell", PATH: "a path cell", START: "S", GOAL: "G"}


class Maze(Kind):
    name = "maze"
    default_copies = 16
    marks_mean = "since the step before: + has become path, - free, ! something else"
    same_key = "equal one of test, perhaps rotated or reflected"
    symbols = ("?", *CHARACTERS)
    look = Look(
        fills=("none", "wall", "free", "start", "goal", "path"),
        glyphs=("", "", "", "S", "G", ""),
        marks=("!", "!", "-", "!", "!", "+"),
    )

    def __post_init__(self):
        if self.rows != self.columns:
            raise ValueError("a maze is a square")

    @classmethod
    def of_cells(cls, cells: int) -> "Maze":
        size = isqrt(cells)
        if size * size != cells:
            raise ValueError("a maze is a square")
        return cls(size, size)

    @classmethod
    def infer(cls, vocab_size: int, seq_len: int, inputs: np.ndarray) -> "Maze | None":
        """4×4 Sudokus have as many tokens; but every maze has one S, one G and no path."""
        if vocab_size != len(cls.symbols) or isqrt(seq_len) ** 2 != seq_len:
            return None
        are_mazes = _has_both_ends(inputs) & ~(inputs == PATH).any(-1)
        return cls.of_cells(seq_len) if are_mazes.all() else None

    # Text

    @classmethod
    def recognises(cls, text: str) -> bool:
        characters = set(text)
        return "#" in characters or bool({"S", "G"} & characters and not characters & set("0123456789"))

    @classmethod
    def parse(cls, text: str, source: str) -> Puzzle:
        place = Places(text)
        for offset, character in enumerate(text):
            if character not in _TYPED and character != "\n":
                raise UserError(
                    f"{source}: {place(offset)} is {shown(character)}; a maze is written in `#` (wall), a blank or `.` "
                    f"(free), S (start) and G (goal)"
                )
        rows = _square(list(_numbered_lines(text)), source)
        for letter, role in (("S", "start"), ("G", "goal")):
            found = [place(offset) for offset, character in enumerate(text) if character == letter]
            if len(found) != 1:
                where = f"{len(found)}: {' and '.join(found[:3])}" if found else "none"
                raise UserError(f"{source}: a maze has one {role} {letter}, this one has {where}")
        kind = cls(len(rows), len(rows))
        inputs = np.array([_TYPED[character] for row in rows for character in row], np.uint8)
        notes = []
        if "o" in text:
            notes.append("the path drawn in with o is taken out: the model sees free cells there")
        if kind.shortest_path_steps(inputs) is None:
            notes.append("no path leads from S to G: no answer can be right")
        return Puzzle(kind, inputs, notes=tuple(notes))

    def encode(self, questions: np.ndarray, answers: np.ndarray) -> Encoded:
        """An answer in a file may branch, but it must connect S and G."""
        tokens = self.tokens_of_codes()
        inputs, labels = tokens[questions], tokens[answers]
        question_bad = ((inputs == PAD) | (inputs == PATH)).any(1)
        problems = [
            (question_bad, "the question has a character other than `#`, space, S and G"),
            ((labels == PAD).any(1), "the answer has a character other than `#`, space, S, G and o"),
            (~_has_both_ends(inputs), "the question does not have exactly one S and one G"),
            (~_keeps(inputs, labels).all(1), "the answer differs from the question by more than o on free cells"),
            (~self._in_one_piece(labels), "the o cells of the answer are not a path from S to G"),
        ]
        return Encoded(inputs, labels, problems)

    def plain(self, tokens: np.ndarray) -> list[str]:
        """Its lines."""
        text = super().plain(tokens)
        return [text[start : start + self.columns] for start in range(0, len(text), self.columns)]

    # Rules

    def valid(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        inputs, answers = np.asarray(inputs), np.asarray(answers)
        path, neighbours = self._path_cells(answers)
        simple = (~path | (neighbours == np.where(self._squares(answers) == PATH, 2, 1))).all((-2, -1))
        return _keeps(inputs, answers).all(-1) & _has_both_ends(answers) & simple & self._in_one_piece(answers)

    def violations(self, inputs: np.ndarray, answer: np.ndarray) -> list[str]:
        inputs, answer = np.asarray(inputs), np.asarray(answer)
        found = []
        for cell in np.flatnonzero(~_keeps(inputs, answer)):
            before, after = (_NAMES.get(int(board[cell]), "nothing") for board in (inputs, answer))
            found.append(f"{before} at {self.place(cell)} has become {after}")
        if not _has_both_ends(answer):
            return found or ["the maze does not have exactly one S and one G"]
        path, neighbours = (grid.ravel() for grid in self._path_cells(answer))
        for cell in np.flatnonzero(path):
            end = f"{self.symbols[answer[cell]]}, " if answer[cell] in (START, GOAL) else ""
            wanted = 1 if end else 2
            if neighbours[cell] < wanted:
                found.append(f"the path breaks off at {end}{self.place(cell)}")
            elif neighbours[cell] > wanted:
                found.append(f"the path branches or touches itself at {end}{self.place(cell)}")
        apart = (path & ~self._reached_from_start(answer).ravel()).sum()
        if apart and not found:
            found.append(f"{apart} cells form a loop apart from the path")
        return found

    def praise(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        steps, shortest = int((answer == PATH).sum()) + 1, self.shortest_path_steps(inputs)
        longer = f"{steps - shortest} longer than the shortest" if steps > shortest else "a shortest one"
        return f"a path of {steps} steps from S to G, {longer}"

    def shortest_path_steps(self, inputs: np.ndarray) -> int | None:
        """Moves on a shortest path from S to G in one maze (cells,); None where there is none."""
        grid = self._squares(np.asarray(inputs))
        reached, steps = _spread(grid == START, grid != WALL, until=grid == GOAL)
        return steps if (reached & (grid == GOAL)).any() else None

    def _squares(self, boards: np.ndarray) -> np.ndarray:
        return boards.reshape(*boards.shape[:-1], self.rows, self.columns)

    def _path_cells(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(…, cells) -> (…, size, size) twice: which cells are S, G or `o`, and how many of the four neighbours are."""
        path = self._squares(answers) >= START
        framed = _framed(path).astype(np.int8)
        return path, sum(framed[..., rows, columns] for rows, columns in _NEIGHBOURS)

    def _in_one_piece(self, answers: np.ndarray) -> np.ndarray:
        """(…, cells) -> (…) bool: whether S reaches G and every `o` cell over such cells."""
        return (self._reached_from_start(answers) == (self._squares(answers) >= START)).all((-2, -1))

    def _reached_from_start(self, answers: np.ndarray) -> np.ndarray:
        """(…, cells) -> (…, size, size): the cells that can be reached from S over S, G and `o` cells."""
        squares = self._squares(answers)
        return _spread(squares == START, squares >= START)[0]

    # Symmetries

    def symmetries(self, count: int, seed: int) -> list[Transform]:
        """The first `count` of 16: 8 rotations and reflections, the identity first; then these with S and G swapped."""
        as_it_is = np.arange(self.vocab_size, dtype=np.uint8)
        swapped = as_it_is.copy()
        swapped[[START, GOAL]] = GOAL, START
        sources = dihedral_copies(np.arange(self.seq_len)[None])[0]  # (8, cells): rotating the cells' numbers
        transforms = [Transform(cells, tokens) for tokens in (as_it_is, swapped) for cells in sources]
        if count > len(transforms):
            raise UserError(f"{count} copies: a maze has {len(transforms)} different ones; choose at most that")
        return transforms[:count]

    def keys(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Keys that are the same for all rotations and reflections of a maze, whatever its label."""
        copies = dihedral_copies(inputs)
        return hash_rows(copies.reshape(-1, self.seq_len)).reshape(len(inputs), 8).min(axis=1)


def dihedral_copies(grids: np.ndarray) -> np.ndarray:
    """(n, cells) -> (n, 8, cells): the transforms 0..7 of each square."""
    size = isqrt(grids.shape[1])
    squares = grids.reshape(len(grids), size, size)
    return np.stack([dihedral_transform(squares, tid).reshape(grids.shape) for tid in range(8)], axis=1)


def _has_both_ends(boards: np.ndarray) -> np.ndarray:
    """(…, cells) -> (…) bool: whether there is exactly one S and one G."""
    return ((boards == START).sum(-1) == 1) & ((boards == GOAL).sum(-1) == 1)


def _keeps(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(…, cells) twice -> (…, cells) bool: whether a cell is as it was, or was free and has become path."""
    return (answers == inputs) | ((inputs == FREE) & (answers == PATH))


# The four neighbours of every cell, as slices of a board that has a frame one cell wide.
_NEIGHBOURS = tuple(
    (slice(1 + row, row - 1 or None), slice(1 + column, column - 1 or None))
    for row, column in ((-1, 0), (1, 0), (0, -1), (0, 1))
)


def _framed(grids: np.ndarray) -> np.ndarray:
    return np.pad(grids, [(0, 0)] * (grids.ndim - 2) + [(1, 1), (1, 1)])


def _spread(start: np.ndarray, open_cells: np.ndarray, until: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Breadth-first search in all boards (…, size, size) at once: the cells reached, and after how many rounds."""
    reached, steps = start & open_cells, 0
    while until is None or not (reached & until).any():
        framed = _framed(reached)
        grown = reached | (open_cells & np.logical_or.reduce([framed[..., r, c] for r, c in _NEIGHBOURS]))
        if np.array_equal(grown, reached):
            break
        reached, steps = grown, steps + 1
    return reached, steps


def _numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, without empty ones at the beginning and end."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line]
    for number in range(filled[0], filled[-1] + 1):
        yield number + 1, lines[number]


def _square(lines: list[tuple[int, str]], source: str) -> list[str]:
    if len(lines) == 1:
        (_, line), size = lines[0], isqrt(len(lines[0][1]))
        if size < 2 or size * size != len(line):
            raise UserError(
                f"{source}: a maze is a square; {len(line)} characters in one line do not make one (30×30 are 900)"
            )
        return [line[start : start + size] for start in range(0, len(line), size)]
    size = max(len(lines), 2)
    widths = Counter(len(line) for _, line in lines)
    if size not in widths or max(widths) > size:  # most lines decide what is wrong with the others
        size = widths.most_common(1)[0][0]
    for number, line in lines:
        if len(line) != size:
            remedy = "; write free cells at the end of a line as `.`" if len(line) < size else ""
            raise UserError(f"{source}: line {number} has {len(line)} characters, the maze is {size} wide{remedy}")
    if len(lines) != size:
        raise UserError(
            f"{source}: a maze is a square, this one has {len(lines)} lines of {size} characters (lines "
            f"{lines[0][0]} to {lines[-1][0]})"
        )
    return [line for _, line in lines]
