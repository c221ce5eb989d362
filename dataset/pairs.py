"""Pairs of a puzzle and its answer as people have them, read one by one: JSONL, CSV, or a folder of text files.

    JSONL    {"input": …, "output": …}, one object a line; "id", "group" and "split" may stand beside them
    CSV      a header with input and output, and the same columns beside them; a value that begins with [ is JSON, any
             other is text, with a line break between the rows of a grid
    folder   NAME.input.txt with NAME.output.txt, in the folder or in train/, test/ and val/ below it; the id is NAME;
             hidden files (.name) are the system's and are passed over

puzzles/cells.py says how a value is written. A file is read as CSV if it is called .csv, else as JSONL.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from errors import UserError, warn
from files import check_is_file, read_text
from puzzles.cells import Rows, Writing, are_numbers, read_cells

SPLITS = ("train", "test", "val")
LABELS = ("id", "group", "split")
LONGEST_LINE = 1 << 24  # characters
_SIDES = (".input.txt", ".output.txt")


@dataclass
class Example:
    """A pair, and where it is from."""

    file: str
    line: int | None  # None: the file holds nothing else
    input: Rows
    output: Rows
    numbers: bool = False  # written in numbers
    id: str | None = None
    group: str | None = None
    split: str | None = None


def place_of(file: str, line: int | None) -> str:
    """What a message calls an example."""
    return file if line is None else f"{file}:{line}"


def read_examples(path: Path, writing: Writing) -> Iterator[Example]:
    """Yield the examples of a file or a folder, in order. Raises `UserError` that names the file and line, or a file
    without any.
    """
    if path.is_dir():
        missing = "NAME.input.txt with NAME.output.txt; name a folder that does, or a file"
        return _at_least_one(_from_folder(path, writing), f"{path} holds no {missing}")
    check_is_file(path, "name a JSONL or CSV file of pairs, or a folder of text files")
    read = _from_csv if path.suffix.lower() == ".csv" else _from_jsonl
    return _at_least_one(read(path, writing), f"{path} holds no pair; name a file that holds some")


def _at_least_one(examples: Iterator[Example], otherwise: str) -> Iterator[Example]:
    found = False
    for example in examples:
        found = True
        yield example
    if not found:
        raise UserError(otherwise)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, at most `LONGEST_LINE` characters each."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield from iter(partial(file.readline, LONGEST_LINE), "")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as such") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _from_jsonl(path: Path, writing: Writing) -> Iterator[Example]:
    unread: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except RecursionError:
            _fail(path, number, "is nested too deeply")
        except ValueError as error:
            _fail(path, number, f"is not JSON ({error}); every line is one object such as " + _SAMPLE)
        if not isinstance(record, dict):
            _fail(path, number, f"is not an object such as {_SAMPLE}")
        unread |= record.keys() - {"input", "output", *LABELS}
        yield _example(str(path), number, record, writing)
    _warn_of_unread(path, "keys", unread)


_SAMPLE = '{"input": …, "output": …}'


def _from_csv(path: Path, writing: Writing) -> Iterator[Example]:
    csv.field_size_limit(LONGEST_LINE)
    reader, line = csv.reader(_lines(path), strict=True), 1
    try:
        header = [name.strip() for name in next(reader, [])]
        names = [name for name in header if name]  # spreadsheets write columns that are empty
        if not {"input", "output"} <= set(names) or len(set(names)) < len(names):
            _fail(path, 1, "the header must name the columns input and output, each once")
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    _fail(path, line, f"has {len(row)} columns, the header {len(header)}; quote values with commas")
                record = dict(zip(header, row, strict=True))
                labels = {key: record[key] for key in LABELS if record.get(key)}
                sides = {side: _value(path, line, side, record[side]) for side in ("input", "output")}
                yield _example(str(path), line, sides | labels, writing)
            line = reader.line_num + 1
    except csv.Error as error:
        _fail(path, line, f"is not valid CSV: {error}")
    _warn_of_unread(path, "columns", set(names) - {"input", "output", *LABELS})


def _value(path: Path, line: int, side: str, text: str) -> Any:
    """A text, or what it says in JSON."""
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        _fail(path, line, f"the {side} begins with [ but is not JSON; texts that begin so are read from JSONL alone")


def _from_folder(folder: Path, writing: Writing) -> Iterator[Example]:
    for split, place in ((None, folder), *((split, folder / split) for split in SPLITS)):
        if split is not None and not place.is_dir():
            continue
        files, others = _listed(place, () if split else SPLITS)
        stems = sorted({name.removesuffix(side) for name in files for side in _SIDES if name.endswith(side)})
        if others:
            warn(f"{place}: {others} other files and folders are not read")
        for stem in stems:
            for side in _SIDES:
                if stem + side not in files:
                    raise UserError(f"{place / (stem + side)} is missing; every input has an output beside it")
            sides = (read_text(place / (stem + side), "save it as text in UTF-8") for side in _SIDES)
            record = dict(zip(("input", "output"), sides, strict=True), id=stem, split=split)
            yield _example(str(place / (stem + _SIDES[0])), None, record, writing)


def _listed(folder: Path, below: Sequence[str]) -> tuple[set[str], int]:
    """The names of files of pairs in a folder, and how many other things are there but for folders called `below`."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        files = {path.name for path in entries if path.name.endswith(_SIDES) and path.is_file()}
        return files, len(entries) - len(files) - sum(path.name in below and path.is_dir() for path in entries)
    except OSError as error:
        place = error.filename or folder
        raise UserError(f"cannot read {place}: {error.strerror}; name a folder that you may read") from None


def _example(file: str, line: int | None, record: dict[str, Any], writing: Writing) -> Example:
    grids = {}
    for side in ("input", "output"):
        if side not in record:
            _fail(file, line, f"there is no {side}")
        try:
            grids[side] = read_cells(record[side], writing)
        except ValueError as error:
            uneven = " cells in row " in str(error)
            remedy = "; --ragged fills rows up with holes" if uneven else ""
            if not writing.words and (uneven or r"'\t'" in str(error)):
                remedy += "; --words reads words with blanks between"
            _fail(file, line, f"the {side} {error}{remedy}")
    labels = {key: _label(file, line, key, record[key]) for key in LABELS if record.get(key) is not None}
    if labels.get("split") not in (None, *SPLITS):
        _fail(file, line, f"the split is {labels['split']!r:.40}; it is one of {', '.join(SPLITS)}, or left out")
    numbers = are_numbers((record["input"], record["output"]), writing.hole)
    return Example(file, line, **grids, numbers=numbers, **labels)


def _label(file: str, line: int | None, key: str, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        _fail(file, line, f"the {key} is {value!r:.40}; it is a text or a whole number")
    return str(value)


def _warn_of_unread(path: Path, what: str, names: set[str]) -> None:
    if names:
        warn(f"{path}: the {what} {', '.join(sorted(names)):.200} are not read")


def _fail(file: str | Path, line: int | None, problem: str) -> NoReturn:
    raise UserError(f"{place_of(str(file), line)}: {problem}")
