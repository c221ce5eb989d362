"""Writes train.csv and test.csv with N-Queens puzzles: python examples/queens_csv.py FOLDER [N]

A question is a solution without all its queens but two. Of the solutions, a quarter is for test alone, with all its
rotations and reflections; so there must be several that are not copies of each other, as from 7 queens on.
"""

import csv
import random
import sys
from itertools import permutations
from pathlib import Path


def solutions(size: int) -> list[tuple[int, ...]]:
    """The column of the queen in each row."""
    rows = range(size)
    return [
        found
        for found in permutations(rows)
        if len({found[r] + r for r in rows}) == len({found[r] - r for r in rows}) == size
    ]


def orbit(board: tuple[int, ...]) -> tuple[int, ...]:
    """The same for all rotations and reflections of a board."""
    copies, size = [], len(board)
    for _ in range(4):
        board = tuple(size - 1 - board.index(column) for column in range(size))  # a quarter turn
        copies += [board, board[::-1]]
    return min(copies)


def text(board: tuple[int, ...], shown: set[int]) -> str:
    return "".join(
        "Q" if column == queen and row in shown else "."
        for row, queen in enumerate(board)
        for column in range(len(board))
    )


def main(folder: str, size: str = "8") -> None:
    rng, boards = random.Random(0), solutions(int(size))
    orbits = sorted({orbit(board) for board in boards})
    if len(orbits) < 2:
        sys.exit(f"error: {size}-Queens has fewer than two solutions that are no copies of each other; take 7 or more")
    held_out = set(rng.sample(orbits, max(1, len(orbits) // 4)))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with open(Path(folder) / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["source", "question", "answer", "rating"])
            for board in boards:
                if (orbit(board) in held_out) == (split == "test"):
                    for _ in range(10):
                        shown = set(rng.sample(range(int(size)), 2))
                        writer.writerow(["queens", text(board, shown), text(board, set(range(int(size)))), 0])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) not in (1, 2) or not (arguments[1:] or ["8"])[0].isdecimal():
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*arguments)
