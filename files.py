"""Files and folders that are whole or not there, that belong to one process at a time, and that are read with care.

What is written gets its name when it is complete; until then it is called `.<name>.<8 hex digits>.tmp`, a name that
nobody can foresee, and is locked by its process, so that what a killed process left is known to be nobody's.
"""

import errno
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from errors import UserError, first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
_LFS_POINTER = b"version https://git-lfs"
MAX_TEXT = 1 << 30  # bytes; the identifiers of an ARC-2 dataset are 40 MB


class Written(NamedTuple):
    """What is known of a file that was written: its size in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str


class _HashingFile(io.FileIO):
    def __init__(self, path: Path):
        super().__init__(path, "x")  # a link that somebody has put there is not followed
        self.hash, self.size, self.in_order = hashlib.sha256(), 0, True

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.hash.update(memoryview(data)[:written])
        self.size += written
        return written

    def seek(self, *to: int) -> int:
        """Some writers go back to fill in a length; then the file has to be read."""
        place = super().seek(*to)
        self.in_order = self.in_order and place == self.size
        return place


class HashedFile(io.BufferedWriter):
    """A new file; `written` says what it holds once it is closed."""

    def __init__(self, path: Path):
        super().__init__(_HashingFile(path), buffer_size=1 << 20)

    @property
    def written(self) -> Written:
        return Written(self.raw.size, self.raw.hash.hexdigest()) if self.raw.in_order else file_digest(self.raw.name)


def file_digest(path: Path, first: float = float("inf")) -> Written:
    """Size and SHA-256 of a file that is there, or of its first bytes."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(int(min(1 << 20, first - size))):
            digest.update(block)
            size += len(block)
    return Written(size, digest.hexdigest())


@contextmanager
def durably(path: Path) -> Iterator[HashedFile]:
    """A new file that is on disk when the block ends; `.written` then says what it holds.

    Raises OSError if the disk is full, even under torch.save, and if there is such a file.
    """
    with _on_disk_at_the_end(HashedFile(path)) as file:
        yield file


@contextmanager
def _on_disk_at_the_end(file: HashedFile) -> Iterator[HashedFile]:
    with file:
        try:
            yield file
        except RuntimeError as error:  # torch.save's own, which does not say why
            if shutil.disk_usage(Path(file.raw.name).parent).free < 1 << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise OSError(first_line(error)) from error
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, save: Callable[[BinaryIO], Any]) -> Written:
    """`save(file)` under another name, and rename it when complete. Raises `UserError` if it cannot be written."""
    with written_beside(path, save) as (beside, written):
        beside.replace(path)
    return written


@contextmanager
def written_beside(path: Path, save: Callable[[BinaryIO], Any]) -> Iterator[tuple[Path, Written]]:
    """`save(file)` under another name, which the block gives `path`'s; else the file is removed at the end.

    Raises `UserError` if it cannot be written, and for an OSError of the block.
    """
    file = lock = None
    try:
        while lock is None:  # else it was taken for abandoned just before
            file = HashedFile(_temporary_name(path))
            lock = _lock_file(file)
        with _on_disk_at_the_end(file):
            save(file)
        yield Path(file.raw.name), file.written
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if lock is not None:
            os.close(lock)
        with suppress(OSError):
            if file is not None:
                Path(file.raw.name).unlink(missing_ok=True)


def _lock_file(file: HashedFile) -> int | None:
    """A handle that locks the file, where there are locks, also when it is closed; None if somebody removes it."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)  # Windows renames nothing that is open
    if _try_lock(file.fileno()) is not False and os.path.exists(file.raw.name):
        return os.dup(file.fileno())
    file.close()
    return None


def _temporary_name(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, for `put_in_place`; it is removed at the end if it is still there.

    What killed processes have left of such folders for the same place is removed first. Raises OSError.
    """
    _recover(place)
    remove_abandoned(place.parent, place.name)
    folder, handle = _temporary_name(place), None
    try:  # from here on, since a signal may come between any two lines
        while handle is None:
            folder.mkdir()
            handle = _lock_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _lock_folder(folder: Path) -> int | None:
    """A handle that locks the folder, where there are locks; None if it was taken for abandoned just before."""
    if os.name == "nt":
        return os.open(os.devnull, os.O_RDONLY)  # folders cannot be opened there
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if _try_lock(handle) is not False and folder.exists():
        return handle
    os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders that killed processes have left in `folder`, of `name` or of any.

    Those of a process that is alive are locked and stay; so does everything on a file system that has no locks.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or name not in (None, match[1]) or path.is_symlink():
            continue
        with suppress(OSError):  # somebody else has removed it, or it is not ours to remove
            handle = os.open(path, os.O_RDONLY)
            try:
                if _try_lock(handle):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    log.info("removed %s, which an interrupted process left", path)
            finally:
                os.close(handle)


def put_in_place(folder: Path, place: Path, aside: Path | None = None) -> None:
    """Rename `folder` to `place`. A folder that is there is moved aside, moved back on an error, and removed at last.

    All are in the same folder. Between the two renames the older one is at `aside`, by default `.<place>.old`; after
    a kill there, the next `temporary_folder` for the place puts it back. Raises OSError.
    """
    aside = aside or _aside(place)
    try:
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        folder.rename(place)
        _sync(place.parent)
    finally:  # also if a signal comes between any two lines
        _recover(place, aside)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _recover(place: Path, aside: Path | None = None) -> None:
    """Put back what was moved aside, or remove it if its successor is in place."""
    aside = aside or _aside(place)
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.rename(place)


def _sync(folder: Path) -> None:
    """Put the names in the folder on disk, where a file system has a way to."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process ends: whether that succeeded, None without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP: a network file system, for example Lustre mounted without `flock`
        return None
    return True


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path`, so that no other process does what `doing` says at the same time.

    The lock ends with the process, however that ends. Its file says who holds it, and is removed at the end, together
    with folders that were made for it and hold nothing else. Raises `UserError` if somebody else holds it. Where the
    file system has no locks this is a warning, and two processes are not kept apart.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    handle = None
    try:
        while handle is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _open_lock(path, doing)
        yield
    except OSError as error:
        if handle is None:
            raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
        raise
    finally:
        if handle is not None:
            with suppress(OSError):
                path.unlink()
            os.close(handle)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _open_lock(path: Path, doing: str) -> int | None:
    """A handle that holds the lock; None if its last holder removed the file just now."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    got = _try_lock(handle)
    if got is False:
        holder = os.read(handle, 4096).decode(errors="replace")
        os.close(handle)
        raise UserError(f"another process {doing}{_holder(holder)}; wait for it or end it ({path} is its lock)")
    if got is None:
        log.warning("%s: this file system has no locks; see to it that no other process %s", path, doing)
    elif not path.exists() or os.stat(path).st_ino != os.fstat(handle).st_ino:
        os.close(handle)
        return None
    os.ftruncate(handle, 0)
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "command": sys.argv[:1]}
    os.pwrite(handle, json.dumps(holder).encode(), 0)
    return handle


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f": process {holder['pid']} on {holder['host']}"
    except (ValueError, TypeError, KeyError):  # it has just been locked
        return ""


def check_writable(folder: Path, what: str, remedy: str, create: bool = False) -> None:
    """Raise `UserError` for a folder that cannot be written, before the work begins and not after it.

    `what` names what would be written, `remedy` says what to do instead. With `create` the folder need not be there
    yet, but it must be possible to make it.
    """
    try:
        there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent) or not create)
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"cannot write {what}: {error.strerror} ({folder}); {remedy}") from None


PNG = b"\x89PNG\r\n\x1a\n"  # what such a file begins with


def check_output(path: Path, option: str, suffix: str, start: bytes) -> None:
    """Raise `UserError`, before the work, for a file that cannot be written or is somebody's.

    `option` is how the user named it. A file that is there is replaced only if it is of the same kind: its name ends
    in `suffix` and it begins with `start`.
    """
    if path.suffix.lower() != suffix:
        raise UserError(f"{option}={path} must end in {suffix}; name a new file")
    check_writable(path.parent, f"{option}={path}", "name a file in a folder that exists")
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise UserError(f"{option}={path} is there and is no file; name a new one")
    with open(path, "rb") as file:
        found = file.read(len(start))
    if found not in (b"", start):
        raise UserError(f"{option}={path} is there and holds something else; name a new file")


def check_is_file(path: Path, remedy: str) -> None:
    """Raise `UserError` for what is no readable file: missing, a folder or a device, or a pointer of Git LFS.

    `remedy` ends the message.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a file; {remedy}")
        if not path.is_file():
            raise UserError(f"{path} {'is not a file' if path.exists() else 'is missing'}; {remedy}")
        with open(path, "rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    if start == _LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull` where it was cloned")


def read_bytes(path: Path, remedy: str, limit: int = MAX_TEXT) -> bytes:
    """The content of a file. Raises `UserError`, ended by `remedy`, if there is none or it is larger than `limit`."""
    check_is_file(path, remedy)
    try:
        if (size := path.stat().st_size) > limit:
            raise UserError(f"{path} has {size:,} bytes, where at most {limit:,} are expected; {remedy}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from None


def read_text(path: Path, remedy: str, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark. Raises `UserError` as `read_bytes` does."""
    data = read_bytes(path, remedy, limit)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {data[error.start]:#04x} at position {error.start}); save it as UTF-8, "
            f"or {remedy}"
        ) from None


def read_json(path: Path, remedy: str, limit: int = MAX_TEXT) -> Any:
    """The value in a JSON file. Raises `UserError` as `read_bytes` does, and for what is not JSON."""
    text = read_text(path, remedy, limit)
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}); {remedy}") from None


def read_yaml(path: Path, remedy: str, limit: int = 1 << 20) -> Any:
    """The plain value in a YAML file. Raises `UserError` as `read_bytes` does, and for what is not YAML.

    Aliases may not make the value larger than `limit` nodes: nine lines of them can stand for a billion.
    """
    import yaml  # a builder that reads JSON does without

    text = read_text(path, remedy, limit)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > limit:
            raise UserError(f"{path} stands for more than {limit:,} values; {remedy}")
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; {remedy}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # Of `!!int ""` and its like, PyYAML raises whatever its own code stumbles over.
        if isinstance(error, UserError):
            raise
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        what = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path} is not YAML ({what}{where}); {remedy}") from None


def _size(node: Any, sizes: dict[int, float]) -> float:
    """How many nodes a YAML node stands for with its aliases written out; infinitely many if it contains itself."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        value = node.value if isinstance(node.value, list) else []
        children = [part for entry in value for part in (entry if isinstance(entry, tuple) else (entry,))]
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]
