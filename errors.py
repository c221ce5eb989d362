"""Errors that the user can put right, shown as one line."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """A mistake outside the code: the message says what is wrong and what to do about it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `UserError` into `error: …` on stderr and exit code 2, and Ctrl-C into exit code 130.

    Any other exception keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def describe_validation_error(error: "ValidationError", option: Callable[[str], str]) -> str:
    """One line for a pydantic error; `option` renders a field's dotted path as the user types it."""
    parts = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        parts.append(f"{option(where)}: {message}" if where else message)
    return "; ".join(parts)


def first_line(error: BaseException) -> str:
    """The first line of another library's exception, or its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
