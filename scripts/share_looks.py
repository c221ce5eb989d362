"""Writes the palette and the looks of the built-in kinds into puzzle_visualizer.html, which must be a single file:

    python scripts/share_looks.py

Run it after changing a palette in puzzles/draw.py or a kind in puzzles/. The page draws a dataset as its dataset.json
says; these looks are for datasets that do not say it. Each kind is there once, but Sudokus in every size.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script

from errors import one_line_errors  # noqa: E402
from files import read_text, write_atomically  # noqa: E402
from puzzles.arc import Arc  # noqa: E402
from puzzles.draw import DARK, PALETTE  # noqa: E402
from puzzles.maze import Maze  # noqa: E402
from puzzles.sudoku import BOXES, Sudoku  # noqa: E402

PAGE = ROOT / "puzzle_visualizer.html"
OPENING = '<script type="application/json" id="kinds">\n'
SHARED = [Arc(30, 30), Maze(30, 30), *(Sudoku(size, size) for size in BOXES)]  # mazes of any size look the same


def block() -> str:
    """The JSON, with a line for each palette and each kind."""
    kinds = ",\n".join(json.dumps(kind.describe()) for kind in SHARED)
    text = f'{{"light": {json.dumps(PALETTE)},\n"dark": {json.dumps(PALETTE | DARK)},\n"kinds": [\n{kinds}\n]}}\n'
    return text.replace("<", "\\u003c")  # nothing in it can end the script element


def with_block(page: str) -> str:
    before, opening, after = page.partition(OPENING)
    assert opening, f"{PAGE} has no element to hold the looks"
    return before + opening + block() + after[after.index("</script>") :]


def main() -> None:
    with one_line_errors():
        page = with_block(read_text(PAGE, "restore it")).encode()
        write_atomically(PAGE, lambda file: file.write(page))


if __name__ == "__main__":
    main()
