"""Arrays in `.npy` files: written piece by piece, read without trusting the file, recognised by digests."""

import errno
import hashlib
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from errors import UserError, first_line

SAMPLE_BLOCKS, BLOCK_BYTES = 64, 1 << 16  # 4 MiB at most, however large the array is


class NpyStream:
    """A `.npy` file written chunk by chunk, so that no more than one chunk is ever in memory.

    (Dirty pages of a writable memory map count as the process's own memory; a stream's do not.)
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype | type):
        self.path, self.row_shape, self.dtype, self.rows = path, row_shape, np.dtype(dtype), 0
        self._digest = hashlib.sha256()
        # Without a buffer, which would be flushed once more, when it is thrown away, after the disk was full.
        self._file = open(path, "wb", buffering=0)
        self._write_header()
        self._data_start = self._file.tell()

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self.row_shape, (rows.shape, self.row_shape)
        data = memoryview(np.ascontiguousarray(rows, dtype=self.dtype).reshape(-1).view(np.uint8))
        self._digest.update(data)
        while data:
            data = data[self._file.write(data) :]
        self.rows += len(rows)

    def data_digest(self) -> str:
        """SHA-256 of the data so far, see `data_digest`."""
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()  # numpy pads the header, so that it keeps its length when the first axis grows
        assert self._file.tell() == self._data_start
        self._file.close()


def map_array(path: Path, remedy: str, kinds: str = "iu") -> np.ndarray:
    """A read-only memory map of integers, or of types of other `kinds`, in numpy's letters.

    Raises a `UserError`, which ends with `remedy`, for any other file.

    Nothing is allocated by what the file says of itself: a header that claims more than there is, is refused. A map
    holds a file descriptor; for a dataset of very many sets this process's limit of them is raised.
    """
    try:
        return _map_array(path, kinds)
    except OSError as error:
        if error.errno == errno.EMFILE and _raise_limit_of_files():
            return map_array(path, remedy, kinds)
        if error.errno == errno.EMFILE:
            remedy = "raise the limit with `ulimit -n`"
        missing = isinstance(error, FileNotFoundError)
        problem = f"{path} is missing" if missing else f"cannot read {path}: {error.strerror or first_line(error)}"
        raise UserError(f"{problem}; {remedy}") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: {first_line(error)}; {remedy}") from None


def _map_array(path: Path, kinds: str) -> np.ndarray:
    """Raises OSError, and ValueError or OverflowError with what is wrong with the file."""
    if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe would wait for its other end
        raise ValueError("it is not a file")
    with open(path, "rb") as file:
        shape, dtype, order, start = _read_header(file, kinds)
        wanted, found = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - start
        if min(shape, default=1) < 0 or wanted > found:
            raise ValueError(
                f"it is truncated: its header claims {shape} {dtype}, {wanted / 1e9:,.3g} GB, and {found / 1e9:,.3g} "
                f"GB follow"
            )
        # A view on the same map: every slice of a `memmap` costs microseconds more.
        return np.memmap(file, dtype, "r", start, shape, order).view(np.ndarray)


def _raise_limit_of_files() -> bool:
    """Let this process open as many files as it may; -> whether it may open more now."""
    with suppress(ImportError, ValueError, OSError):  # Windows has other limits
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if now != most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return True
    return False


def _read_header(file: BinaryIO, kinds: str) -> tuple[tuple[int, ...], np.dtype, str, int]:
    """-> shape, type, order ("C" or "F"), where the data begin. Raises ValueError with what is wrong."""
    start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        raise ValueError("it is an archive, not a .npy file")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`")
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header that Python 2 wrote
            shape, fortran, dtype = read(file)
    except Exception as error:  # Python's parser has many: SyntaxError, TokenError, RecursionError, MemoryError
        raise ValueError(f"it is truncated or not a .npy file ({first_line(error):.100})") from None
    if dtype.kind not in kinds:
        raise ValueError(f"it holds {dtype}, not {'integers' if kinds == 'iu' else 'numbers'}"[:200])
    return tuple(map(int, shape)), dtype, "F" if fortran else "C", file.tell()


def data_digest(array: np.ndarray) -> str:
    """SHA-256 of all data of the array in the order of the file, without its header."""
    return hashlib.sha256(_data(array)).hexdigest()


def sample_digest(array: np.ndarray) -> str:
    """SHA-256 of the type and shape and of 64 blocks of 64 KiB, evenly spaced over the data, both ends included.

    Of all data where the blocks would not be fewer.
    """
    order = "" if array.flags.c_contiguous else " in Fortran's order"
    digest, data = hashlib.sha256(f"{array.dtype.str} {array.shape}{order}".encode()), _data(array)
    if len(data) <= SAMPLE_BLOCKS * BLOCK_BYTES:
        digest.update(data)
    else:
        for block in range(SAMPLE_BLOCKS):
            start = (len(data) - BLOCK_BYTES) * block // (SAMPLE_BLOCKS - 1)
            digest.update(data[start : start + BLOCK_BYTES])
    return digest.hexdigest()


def _data(array: np.ndarray) -> np.ndarray:
    """The bytes in the order of the file; not a copy."""
    stored = array if array.flags.c_contiguous else array.T
    return stored.reshape(-1).view(np.uint8)
