"""Where commands write: a terminal of another alphabet, a reader that has gone away, a device that fails."""

import errno
import io
import json
import logging
import os
import sys

import pytest

import errors
import evaluate
import solve
from evaluators import arc, figures, search
from tests.arc_predictions import build_dataset, predict, save_torch
from tests.flattering import flattering_run
from training import report
from training.metrics import start_logging

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Name -> (main, arguments) of what prints more than a line."""
    folder = tmp_path_factory.mktemp("ünï")
    this = f"checkpoint={flattering_run(folder)}"
    line = {"step": 1, "eval/exact_accuracy": 0.5, "eval/accuracy": 1, "eval/lm_loss": 1, "eval/steps": 2}
    (folder / "run/metrics.jsonl").write_text(json.dumps(line))
    dataset = build_dataset(folder / "arc", num_aug=0)
    predictions = save_torch(folder / "step_1", predict(dataset, 0)[0])
    return {
        "evaluate": (evaluate.main, [this]),
        "solve": (solve.main, [this, "puzzle=" + "." * 16]),
        "solve json": (solve.main, [this, "puzzle=" + "." * 16, "--json"]),
        "search": (search.main, [this, "views=2"]),
        "search json": (search.main, [this, "json=true"]),
        "figures": (figures.main, ["steps", this, "examples=1"]),
        "arc": (arc.main, [f"dataset={dataset}", f"predictions={predictions}"]),
        "report": (report.main, [str(folder / "run")]),
        "help": (solve.main, ["--help"]),
    }


COMMANDS = ["evaluate", "solve", "solve json", "search", "search json", "figures", "arc", "report", "help"]


def call(monkeypatch, main, arguments, stdout) -> int | str | None:
    """-> the exit code."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdout", stdout)
    try:
        main()
    except SystemExit as left:
        return left.code
    return 0


def printed(monkeypatch, main, arguments, encoding) -> str:
    """What is printed where only the characters of `encoding` can be shown."""
    written = io.BytesIO()
    assert call(monkeypatch, main, arguments, io.TextIOWrapper(written, encoding)) in (0, None)
    return written.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_shown_is_replaced(commands, monkeypatch, name, encoding):
    text = printed(monkeypatch, *commands[name], encoding)
    assert len(text) > 20
    if name in ("solve", "report"):
        assert "?" in text
    if "json" in name:
        json.loads(text)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone_away_ends_a_command_quietly(commands, monkeypatch, capfd, name):
    """As in `… | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    main, arguments = commands[name]
    with open(writer, "w", encoding="utf-8") as stdout:
        assert call(monkeypatch, main, arguments, stdout) == 141
    err = capfd.readouterr().err
    assert "rror" not in err


def test_nor_do_its_log_lines_leave_tracebacks(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        start_logging(is_main=True)
        logging.getLogger("x").info("a line")
        errors._forget(stdout)
    assert not capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_device_is_one_line(commands, monkeypatch, capfd, name):
    with open("/dev/full", "w", encoding="utf-8") as stdout:
        assert call(monkeypatch, *commands[name], stdout) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "rror" in line]
    assert lines == ["error: No space left on device"]


WRITERS = {
    "evaluate": ["output_dir={out}"],
    "evaluate torch": ["output_dir={out}", "save_format=torch"],
    "solve": ["gif={out}.gif"],
    "search": ["output_dir={out}"],
    "figures": ["out={out}"],
    "arc": ["submission={out}.json"],
    "report": ["out={out}.png"],
}


@pytest.mark.parametrize("fault", ["fsync", "rename", "open"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fails_is_one_line_and_leaves_nothing(commands, monkeypatch, capfd, tmp_path, name, fault):
    def fails(*args, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def opens(file, mode="r", *args, open=open, **options):
        return fails() if str(file).startswith(str(tmp_path)) and mode != "r" else open(file, mode, *args, **options)

    main, arguments = commands[name.split()[0]]
    arguments = [*arguments, *(option.format(out=tmp_path / "out") for option in WRITERS[name])]
    if fault == "rename":
        monkeypatch.setattr("pathlib.Path.replace", fails)
        monkeypatch.setattr("pathlib.Path.rename", fails)
    elif fault == "fsync":
        monkeypatch.setattr("os.fsync", fails)
    else:
        monkeypatch.setattr("files._HashingFile", fails)
        monkeypatch.setattr("builtins.open", opens)
    assert call(monkeypatch, main, arguments, io.StringIO()) == 2
    monkeypatch.undo()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "rror" in line]
    assert line.startswith("error: cannot write ")
    assert "Input/output error" in line
    assert not list(tmp_path.iterdir())
