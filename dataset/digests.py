"""Digests by which a file of a dataset is recognised: of all its bytes, and of a sample that is quickly read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SAMPLE_BLOCKS, BLOCK_BYTES = 64, 1 << 16  # 4 MiB at most, however large the file is

Digests = tuple[str, str]  # SHA-256 in hexadecimal: of the data, of their sample


def sample_digest(array: np.ndarray) -> str:
    """Of the type and the shape, and of 64 blocks of 64 KiB evenly spaced over the data; of all data if they are fewer.

    The first and the last block are among them.
    """
    data = _bytes(array)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    if len(data) <= SAMPLE_BLOCKS * BLOCK_BYTES:
        digest.update(data)
    else:
        last = len(data) - BLOCK_BYTES
        for block in range(SAMPLE_BLOCKS):
            start = last * block // (SAMPLE_BLOCKS - 1)
            digest.update(data[start : start + BLOCK_BYTES])
    return digest.hexdigest()


def data_digest(array: np.ndarray) -> str:
    """Of all data of the array, without its type and shape."""
    return hashlib.sha256(_bytes(array)).hexdigest()


def digests_of(array: np.ndarray) -> Digests:
    return data_digest(array), sample_digest(array)


def file_digests(path: Path) -> Digests:
    """Of a file that is no array: of its bytes. Raises OSError."""
    return digests_of(np.frombuffer(path.read_bytes(), np.uint8))


def combined(described: str, digests: Mapping[str, str]) -> str:
    """16 hexadecimal digits for a description and the digests of files, by name."""
    return hashlib.sha256(json.dumps([described, dict(sorted(digests.items()))]).encode()).hexdigest()[:16]


def _bytes(array: np.ndarray) -> memoryview:
    """The data in the order of the file, which is only copied if the array is no plain piece of memory."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
