"""Puzzles in CSV files, which the Sudoku, maze and grid builders read.

    source,question,answer,rating
    <where from>,<one character per cell>,<one character per cell>,<integer difficulty>

For the first two, `train.csv` and `test.csv` are in one folder or in a Hugging Face dataset
(`sapientinc/sudoku-extreme`, `sapientinc/maze-30x30-hard-1k`). Files are read chunk by chunk: Sudoku-Extreme has 3.8
million rows.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from pydantic import BaseModel

from errors import UserError, first_line
from files import check_is_file

COLUMNS = ["source", "question", "answer", "rating"]
LONGEST_LINE = 1 << 20  # characters; a longer one is cut, and then no row of a puzzle
CHUNK_CHARACTERS = 1 << 21  # of the question column: 26,000 Sudokus or 2,300 mazes at a time


class PuzzleRows(NamedTuple):
    """Some rows as they are in the file; `line` is where each one begins."""

    question: np.ndarray  # (rows, width) uint8, ASCII
    answer: np.ndarray  # (rows, width) uint8, ASCII
    rating: np.ndarray  # (rows,) int64
    line: np.ndarray  # (rows,) int64


class PuzzleCsv:
    """One `source,question,answer,rating` file, read from the start by every call of `chunks`."""

    def __init__(self, path: str | Path):
        self.name = str(path)

    def chunks(self) -> Iterator[PuzzleRows]:
        """Yield all rows in order; all have the width of the first one."""
        check_is_file(Path(self.name), "name a puzzle CSV, completely downloaded")
        try:
            with open(self.name, "rb") as file:
                start = file.read(4)
            if b"\0" in start or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                self.fail(1, "this is UTF-16 text, or none; save it as UTF-8")
            # Bytes that are not UTF-8 become an illegal character, which is reported with its line.
            with open(self.name, newline="", encoding="utf-8-sig", errors="replace") as file:
                lines = iter(partial(file.readline, LONGEST_LINE), "")
                yield from self._parse(csv.reader(lines, strict=True))
        except OSError as error:
            raise UserError(f"cannot read {self.name}: {error.strerror}") from None

    def _parse(self, reader: Any) -> Iterator[PuzzleRows]:
        line = 1  # where the record being read begins

        def numbered() -> Iterator[tuple[int, list[str]]]:
            nonlocal line
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1

        rows = numbered()
        try:
            if next(rows, (0, []))[1] != COLUMNS:
                self.fail(1, f"the header is not {','.join(COLUMNS)}; is this a puzzle CSV, completely downloaded?")
            width, size = 0, 1
            while chunk := list(islice(rows, size)):
                width = width or self._width(*chunk[0])
                size = max(1, CHUNK_CHARACTERS // width)
                yield self._columns(chunk, width)
        except csv.Error as error:
            self.fail(line, f"not valid CSV: {error}")

    def _width(self, line: int, row: list[str]) -> int:
        if len(row) != len(COLUMNS) or not row[1]:
            self.fail(line, f"expected {','.join(COLUMNS)}, found {len(row)} columns or an empty question")
        return len(row[1])

    def _columns(self, chunk: list[tuple[int, list[str]]], width: int) -> PuzzleRows:
        lines, rows = zip(*chunk, strict=True)
        if {len(row) for row in rows} != {len(COLUMNS)}:
            line, row = next(item for item in chunk if len(item[1]) != len(COLUMNS))
            self.fail(line, f"expected {len(COLUMNS)} columns, found {len(row)}; is the file truncated?")
        _, questions, answers, ratings = zip(*rows, strict=True)
        for name, column in (("question", questions), ("answer", answers)):
            if set(map(len, column)) != {width}:
                line, text = next((n, text) for n, text in zip(lines, column, strict=True) if len(text) != width)
                self.fail(line, f"the {name} has {len(text)} characters; the first question has {width}")
        try:
            rating = np.array(list(map(int, ratings)), np.int64)
        except (ValueError, OverflowError):
            line, text = next(pair for pair in zip(lines, ratings, strict=True) if not _is_int64(pair[1]))
            self.fail(line, f"the rating {text!r:.60} is not a whole number; is the file truncated?")
        return PuzzleRows(_codes(questions, width), _codes(answers, width), rating, np.array(lines))

    def fail(self, line: int, problem: str) -> NoReturn:
        raise UserError(f"{self.name}:{line}: {problem}")


class GeneratedPuzzles:
    """Puzzles from a generator, read as if they were in a file."""

    def __init__(self, name: str, question: np.ndarray, answer: np.ndarray, rating: np.ndarray):
        self.name, self._rows = name, PuzzleRows(question, answer, rating, np.arange(1, len(question) + 1))

    def chunks(self) -> Iterator[PuzzleRows]:
        step = max(1, CHUNK_CHARACTERS // self._rows.question.shape[1])
        for start in range(0, len(self._rows.question), step):
            yield PuzzleRows(*(column[start : start + step] for column in self._rows))


PuzzleFile = PuzzleCsv | GeneratedPuzzles


def _codes(column: Iterable[str], width: int) -> np.ndarray:
    """Texts of one width -> (rows, width) uint8; characters outside ASCII become `?`."""
    return np.frombuffer("".join(column).encode("ascii", "replace"), np.uint8).reshape(-1, width)


def _is_int64(text: str) -> bool:
    try:
        return bool(np.int64(int(text)) == int(text))
    except (ValueError, OverflowError):
        return False


def check_one_source(config: BaseModel, generate_only: Sequence[str]) -> None:
    """Raise ValueError if the options of a builder name two sources, or belong to a source that is not used."""
    given = config.model_fields_set
    if config.generate:
        for name in sorted({"source_dir", "source_repo"} & given):
            raise ValueError(f"{_option(name)} and --generate are two sources; give one")
    else:
        for name in generate_only:
            if name in given:
                raise ValueError(f"{_option(name)} belongs to --generate; add that or leave it out")
        if {"source_dir", "source_repo"} <= given and config.source_dir is not None:
            raise ValueError("--source-dir and --source-repo are two sources; give one")


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def open_source(source_dir: Path | None, source_repo: str) -> dict[str, PuzzleFile]:
    """Open train.csv and test.csv in a folder or, without one, in a Hugging Face dataset."""
    if source_dir is None:
        return _download(source_repo)
    for split in ("train", "test"):
        if not (source_dir / f"{split}.csv").is_file():
            raise UserError(f"missing file {source_dir / split}.csv; --source-dir must hold train.csv and test.csv")
    return {split: PuzzleCsv(source_dir / f"{split}.csv") for split in ("train", "test")}


def _download(repo: str) -> dict[str, PuzzleFile]:
    """Fetch the two files of a Hugging Face dataset, from the local cache if they are there."""
    remedy = (
        f"download train.csv and test.csv from https://huggingface.co/datasets/{repo} on a connected machine and "
        "build with --source-dir FOLDER, or make puzzles with --generate"
    )
    try:
        # Imported here: the other sources do not need it.
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.logging import set_verbosity_error
    except ImportError:
        raise UserError(f"the package huggingface_hub is not installed: pip install it, or {remedy}") from None
    print(f"fetching {repo} from Hugging Face", file=sys.stderr)
    set_verbosity_error()  # its retries would each print a line
    files: dict[str, PuzzleFile] = {}
    for split in ("train", "test"):
        try:
            files[split] = PuzzleCsv(hf_hub_download(repo, f"{split}.csv", repo_type="dataset"))
        except Exception as error:  # its own errors and those of the HTTP client, which differs between versions
            raise UserError(
                f"cannot download {split}.csv of {repo} ({type(error).__name__}: {first_line(error)}); {remedy}"
            ) from None
    return files


def check_rows(name: str, line: np.ndarray, problems: list[tuple[np.ndarray, str]]) -> None:
    """Raise `UserError` for the first row with a problem; `problems` are (rows,) masks and what each means."""
    bad = np.logical_or.reduce([mask for mask, _ in problems])
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{name}:{line[row]}: {next(text for mask, text in problems if mask[row])}")
