"""What a search leaves behind, `<checkpoint>_search/` unless output_dir names another folder:

    settings.json         what was searched and how; a search is gone on with only under the same settings
    rows.<rank>.bin       a record for each puzzle, `row_type`, appended chunk after chunk
    report.json           what json=true prints
    risk_coverage.png     the share of wrong answers against the share of puzzles that are answered

Memory does not grow with the puzzles while they are searched. At the end, the score and the right of every puzzle are
sorted, of one rule at a time: some tens of bytes each.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from files import check_writable, locked, read_json, remove_abandoned, write_atomically

FORMAT = 1
SETTINGS, REPORT, CURVES = "settings.json", "report.json", "risk_coverage.png"
_OURS = re.compile(r"settings\.json|report\.json|risk_coverage\.png|rows\.\d+\.bin|\.lock|\.(.+)\.[0-9a-f]{8}\.tmp")
_ROWS_AT_ONCE = 1 << 16


def row_type(rules: Sequence[str], models: int) -> np.dtype:
    """The record of a puzzle."""
    of_rule = [("trajectory", "<i4"), ("right", "?"), ("valid", "?"), ("score", "<f8")]
    return np.dtype(
        [
            ("example", "<i8"),  # its number in the split
            ("segments", "<u2"),  # that were run on it
            ("any_right", "?"),  # whether any answer that a rule could have chosen is right
            ("any_last_right", "?"),  # the same of the answers after the last segment
            ("valid_answers", "<u4"),  # how many of these obey the rules of the puzzle
            ("no_answer", "<u4", (models,)),  # trajectories of each model whose values are no numbers
            ("rules", [(rule, of_rule) for rule in rules]),
        ]
    )


@contextmanager
def searching(folder: Path) -> Iterator[None]:
    """What a search runs in, on rank 0, so that no other one writes to the same folder. Raises `UserError`."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"output_dir={folder} is there and is no folder; name another")
    check_writable(folder, "the search", "name another output_dir", create=True)
    with locked(folder / ".lock", f"is searching into {folder}"):
        yield


def prepare(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Make the folder ready: go on with the search that is there, or replace it.

    Raises `UserError` if something else is there, or with `resume` a search under other settings.
    """
    settings = {"format": FORMAT} | settings
    others = sorted(path.name for path in folder.iterdir() if not _OURS.fullmatch(path.name) or path.is_dir())
    rows = sorted(folder.glob("rows.*.bin"))
    path = folder / SETTINGS
    found = read_json(path, "name another output_dir") if path.exists() else None
    if others or (found is None and (rows or (folder / REPORT).exists())):
        what = others[0] if others else (rows or [folder / REPORT])[0].name
        raise UserError(f"{folder} holds something else than a search ({what}); name another output_dir")
    if found is not None and not (isinstance(found, dict) and found.get("format") == FORMAT and "choose" in found):
        raise UserError(f"{path} is not that of a search; name another output_dir")
    remove_abandoned(folder)
    if resume and found is not None:
        wrong = [key for key in sorted(found.keys() | settings.keys()) if found.get(key) != settings.get(key)]
        if wrong:
            changes = ", ".join(f"{key} was {found.get(key)} and is {settings.get(key)}" for key in wrong)
            raise UserError(f"{folder} holds a search under other settings: {changes}; set them back or drop resume")
        return
    for old in (*rows, folder / REPORT, folder / CURVES):
        old.unlink(missing_ok=True)
    write_atomically(path, lambda file: file.write((json.dumps(settings, indent=1) + "\n").encode()))


class Rows:
    """The records of one rank. They follow its chunks, so that those of a search that was killed are known by order."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._path, self._dtype = path, dtype
        try:
            self._file = open(path, "a+b")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; name another output_dir") from None
        self._done, self._there = 0, path.stat().st_size // dtype.itemsize

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        with suppress(OSError) if kind else nullcontext():  # what could not be written is not worth a second error
            self._file.close()

    def has(self, examples: np.ndarray) -> bool:
        """Whether the next chunk is there; if not, whatever lies in its place is cut off."""
        if self._done + len(examples) <= self._there:
            self._file.seek(self._done * self._dtype.itemsize)
            rows = np.frombuffer(self._file.read(len(examples) * self._dtype.itemsize), self._dtype)
            if np.array_equal(rows["example"], examples):
                self._done += len(examples)
                return True
        self._there = 0
        self._file.truncate(self._done * self._dtype.itemsize)
        return False

    def append(self, rows: np.ndarray) -> None:
        """After `has` said no."""
        with self._named():
            self._file.write(rows.tobytes())
            self._file.flush()
        self._done += len(rows)

    def finish(self) -> None:
        """After the last chunk: nothing follows, and all is on disk."""
        with self._named():
            self._file.truncate(self._done * self._dtype.itemsize)
            os.fsync(self._file.fileno())

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"cannot write {self._path}: {error.strerror}"
            raise UserError(f"{reason}; make room and go on with resume=true") from None


def read_rows(folder: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The records of all ranks, in parts."""
    for path in sorted(folder.glob("rows.*.bin")):
        with open(path, "rb") as file:
            while block := file.read(_ROWS_AT_ONCE * dtype.itemsize):
                yield np.frombuffer(block, dtype)
