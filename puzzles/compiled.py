"""Functions that numba compiles; the machine code is kept for the next start, if it can be written anywhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba import njit


def compiled(function: Callable) -> Callable:
    """The function as machine code, which runs without the interpreter's lock."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache folder can be written
        return njit(nogil=True)(function)


@contextmanager
def interruptible() -> Iterator[None]:
    """Around calls of compiled functions: what a signal raises in one comes out of it as a SystemError otherwise."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, KeyboardInterrupt | SystemExit):
            raise error.__cause__ from None
        raise
