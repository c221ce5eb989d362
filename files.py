"""Files and folders that are whole or not there: written under another name and renamed when complete."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from errors import UserError, first_line


@contextmanager
def durably(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on disk when the block ends. Raises OSError if the disk is full, even under torch.save."""
    with open(path, "wb") as file:
        try:
            yield file
        except RuntimeError as error:  # torch.save's own, which does not say why
            if shutil.disk_usage(path.parent).free < 1 << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise OSError(first_line(error)) from error
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, save: Callable[[BinaryIO], Any]) -> None:
    """`save(file)` under another name, and rename it when complete. Raises `UserError` if it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with durably(beside) as file:
            save(file)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def put_in_place(folder: Path, place: Path, aside: Path | None = None) -> None:
    """Rename `folder` to `place`. A folder that is there is moved aside, moved back on an error, and removed at last.

    All are in the same folder. Between the two renames the older one is at `aside`, by default `<folder>-old`; give
    `aside` to find it again after a kill.
    """
    aside = aside or folder.with_name(f"{folder.name}-old")
    try:
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        folder.rename(place)
        _sync(place.parent)
    finally:  # also if a signal comes between any two lines
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(place)


def _sync(folder: Path) -> None:
    """Put the names in the folder on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path, what: str, remedy: str, create: bool = False) -> None:
    """Raise `UserError` for a folder that cannot be written, before the work begins and not after it.

    `what` names what would be written, `remedy` says what to do instead. With `create` the folder is made.
    """
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write {what}: {error.strerror} ({folder}); {remedy}") from None
