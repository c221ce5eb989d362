"""Functions that numba compiles; the machine code is kept for the next start, if it can be written anywhere."""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """The function as machine code, which runs without the interpreter's lock."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache folder can be written
        return njit(nogil=True)(function)
