"""What a command says when something fails: python -m pytest tests/test_errors.py"""

import os
import subprocess
import sys

import pytest
import torch

from errors import UserError, one_line_errors, some_of
from tests.launch import ROOT

FAILURES = {
    "of the user": (UserError("lr=0:\n  set it above 0"), "error: lr=0: set it above 0\n"),
    "of a file": (FileNotFoundError(2, "No such file or directory", "x/y"), "error: No such file or directory: x/y\n"),
    "of a disk": (OSError(28, "No space left on device"), "error: No space left on device\n"),
    "without words": (OSError(), "error: OSError\n"),
    "of memory": (MemoryError("Unable to allocate 7 EiB"), "error: out of memory (Unable to allocate 7 EiB); use sm"),
    "of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory (CUDA out of memory. Tr"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line_and_exit_code_2(name, capsys):
    error, line = FAILURES[name]
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(line)


def test_long_lists_are_cut_short():
    assert [some_of(names, 2) for names in ([], "a", "ab", "abc")] == ["", "a", "a, b", "a, b and 1 more"]
    assert some_of(range(9), 3, "more tasks") == "0, 1, 2 and 6 more tasks"


@pytest.mark.parametrize("bug", [RuntimeError("shapes differ"), KeyError("q"), AssertionError()])
def test_a_mistake_in_the_code_keeps_its_traceback(bug):
    with pytest.raises(type(bug)), one_line_errors():
        raise bug


def command(code: str, **streams) -> subprocess.CompletedProcess:
    code = f"import os, signal, time\nfrom errors import one_line_errors\nwith one_line_errors():\n  {code}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace", **streams
    )


def test_allocations_of_pytorch_and_numpy_that_cannot_be():
    for code in ("import torch; torch.empty(10**17)", "import numpy; numpy.empty(10**17)"):
        done = command(code)
        assert done.returncode == 2
        assert done.stderr.startswith("error: out of memory (") and done.stderr.count("\n") == 1


def test_a_reader_that_has_gone_away_ends_the_command_without_a_word():
    read, write = os.pipe()
    os.close(read)
    done = command("print('x' * 100000); print('y')", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_device_is_noticed_at_the_end():
    with open("/dev/full", "w") as full:
        done = command("print('x')", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_what_a_terminal_cannot_show_is_replaced(encoding):
    done = command("print('9×9 │ ▁█')", stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("?") >= 3


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_was_closed_before_costs_nothing(closed):
    started = f"import sys; sys.{closed} = None"
    done = subprocess.run(
        [sys.executable, "-c", f"{started}\nfrom errors import *\nwith one_line_errors(): raise UserError('no')"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("" if closed == "stderr" else "error: no\n")


def test_what_could_change_a_terminal_is_not_printed(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise UserError("name \x1b[31m\a is red")
    assert capsys.readouterr().err == "error: name ?[31m? is red\n"


def test_a_full_stderr_keeps_the_exit_code():
    with open("/dev/full", "w") as full:
        code = "from errors import *\nwith one_line_errors(): raise UserError('no')"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=full).returncode == 2


def test_sigterm_cleans_up():
    done = command("\n  try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n  finally: os.write(2, b'clean')")
    assert (done.returncode, done.stderr) == (143, "clean")
