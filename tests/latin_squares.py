"""A kind of puzzle dropped in as one file: puts its folder on the path, and writes its puzzles to CSV files."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

import numpy as np

import puzzles

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@contextmanager
def latin_dropped_in(folder: Path) -> Iterator[Path]:
    """`folder`/puzzles/latin.py on the path of this process; afterwards nothing is left of it."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("queens*"))
    search_path = list(puzzles.__path__)
    sys.path.append(str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        puzzles.__path__ = search_path
        sys.modules.pop("puzzles.latin", None)
        vars(puzzles).pop("latin", None)


def all_latin_squares() -> list[str]:
    """The 576 of 4×4, as text."""
    rows = ["".join(letters) for letters in permutations("ABCD")]
    found = [""]
    for _ in range(4):
        found = [top + row for top in found for row in rows if all(row[i % 4] != c for i, c in enumerate(top))]
    return found


def write_source(folder: Path, train: int, test: int, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """train.csv and test.csv with different squares, about half of each blank -> their questions and answers."""
    rng = np.random.default_rng(seed)
    answers = rng.permutation(all_latin_squares())
    puzzles_of = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", answers[:train]), ("test", answers[train : train + test])):
        rows = [("".join("." if rng.random() < 0.5 else c for c in answer), str(answer)) for answer in chosen]
        lines = ["source,question,answer,rating", *(f"x,{question},{answer},0" for question, answer in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        puzzles_of[split] = rows
    return puzzles_of
