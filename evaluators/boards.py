"""Sudokus as text: a grid of digits with its boxes, several of them side by side."""

from collections.abc import Sequence

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box, by the size of the grid


def sudoku_lines(tokens: np.ndarray, changed: np.ndarray | None = None) -> list[str]:
    """Tokens (size²,) of a Sudoku (1 blank, digits from 2) -> lines; `changed` cells are followed by a `*`."""
    size = round(len(tokens) ** 0.5)
    rows, cols = BOXES[size]
    marks = np.zeros(len(tokens), bool) if changed is None else changed
    lines = []
    for r in range(size):
        cells = [
            (str(tokens[i] - 1) if tokens[i] > 1 else ".") + ("*" if marks[i] else " ")
            for i in range(r * size, (r + 1) * size)
        ]
        lines.append("│ ".join("".join(cells[c : c + cols]) for c in range(0, size, cols)))
        if (r + 1) % rows == 0 and r + 1 < size:
            lines.append("┼─".join("─" * (2 * cols) for _ in range(size // cols)))
    return lines


def side_by_side(columns: Sequence[tuple[str, list[str]]], gap: int = 3) -> str:
    """(heading, lines) of each column -> one block of text; columns may differ in height."""
    height = max(len(lines) for _, lines in columns)
    blocks = []
    for heading, lines in columns:
        block = [heading, *lines] + [""] * (height - len(lines))
        width = max(map(len, block))
        blocks.append([line.ljust(width) for line in block])
    return "\n".join((" " * gap).join(parts).rstrip() for parts in zip(*blocks, strict=True))
