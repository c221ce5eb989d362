"""What the tests of the Sudoku and of the maze builder share: source files, the command, and what it leaves behind."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")


@dataclass(frozen=True)
class Builder:
    """The builder of a kind, and the reference CSV files of its puzzles."""

    kind: str

    @property
    def reference(self) -> Path:
        return ROOT / "tests" / "reference" / self.kind

    def rows_of(self, split: str) -> list[list[str]]:
        return [line.split(",") for line in (self.reference / f"{split}.csv").read_text().splitlines()]

    def write_source(
        self, folder: Path, train: list[list[str]] | None = None, test: list[list[str]] | None = None
    ) -> Path:
        """A folder of CSV files with these rows or, without, with those of the reference."""
        folder.mkdir()
        for split, rows in (("train", train or self.rows_of("train")), ("test", test or self.rows_of("test"))):
            (folder / f"{split}.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
        return folder

    def run_script(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "dataset" / f"build_{self.kind}_dataset.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def load(folder: Path, split: str) -> dict[str, np.ndarray]:
    return {field: np.load(folder / split / f"all__{field}.npy") for field in FIELDS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
