"""Errors that the user can put right, and warnings, each shown as one line."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """A mistake outside the code: the message says what is wrong and what to do about it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What every command runs in: an error that is not the code's fault becomes `error: …` on stderr and exit code 2.

    That is a `UserError`, any error of the operating system and memory that cannot be had; other exceptions keep their
    traceback. Ctrl-C ends with exit code 130, SIGTERM with 143 after cleaning up, a reader of stdout that has gone
    away (`| head`) with 141 and without a word. Characters that the terminal cannot show are replaced.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us (`>&-`); not closed at the end, like the others
            setattr(sys, name, open(os.devnull, "w"))
        with suppress(AttributeError, ValueError):  # not a text file, or closed since
            getattr(sys, name).reconfigure(errors="replace")
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        try:
            yield
        except SystemExit:  # `--help`
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where an error still has a line
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        _forget(sys.stdout)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno == errno.ENOSPC or error.errno == errno.EIO:
            _forget(sys.stdout)  # if that was it
        file = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or first_line(error)}{file}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(f"out of memory ({first_line(error)}); use smaller batches, a smaller model or a larger machine")


def _fail(message: str) -> NoReturn:
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))  # names come from anybody's files
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # a full disk may hold stderr as well
        _forget(sys.stderr)
    raise SystemExit(2) from None


def _forget(stream: TextIO) -> None:
    """Let what cannot be written go nowhere: the interpreter flushes it once more at the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: of the host, in Python's, NumPy's or PyTorch's words, or of a GPU."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def describe_validation_error(error: "ValidationError", option: Callable[[str], str]) -> str:
    """One line for a pydantic error; `option` renders a field's dotted path as the user types it."""
    parts = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        parts.append(f"{option(where)}: {message}" if where else message)
    return "; ".join(parts)


def warn(message: str) -> None:
    """A line on stderr about what a person should know before relying on the result; the command goes on."""
    print(f"warning: {message}", file=sys.stderr)


def some_of(names: Sequence[object], most: int, more: str = "more") -> str:
    """The first `most` names, and how many others there are: `a, b and 3 more`."""
    others = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {others} {more}" if others > 0 else "")


def first_line(error: BaseException) -> str:
    """The first line of another library's exception, or its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
