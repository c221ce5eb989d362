"""The scripts that measure: python -m pytest tests/test_measure.py"""

import json
import re

import pytest

from scripts import measure_dataset, measure_growth, measure_predictions, measure_voting
from scripts.measure_dataset import (
    first_batch,
    first_test_batch,
    identity,
    measured,
    names,
    open_train,
    whole,
    write,
)
from tests.launch import error_line, run


def test_time_and_memory_of_a_command():
    code = "import time; x = bytearray(200 << 20); time.sleep(0.3)"
    measured = json.loads(run("-m", "scripts.measure", "-c", code).stdout)
    assert 0.3 <= measured["seconds"] < 10
    assert measured["cpu_seconds"] < measured["seconds"] + 0.1
    assert 200 <= measured["peak_mb"] < 300


@pytest.mark.parametrize("steps", [100, 109, 119, 130, 3000])
def test_the_run_that_may_grow_is_one_that_pretrain_accepts(tmp_path, steps):
    values = dict(word.split("=", 1) for word in measure_growth.command(tmp_path, steps) if "=" in word)
    epochs, interval = int(values["epochs"]), int(values["eval_interval"])
    assert epochs == 10 * interval
    made = epochs * measure_growth.PUZZLES // measure_growth.BATCH
    assert steps * 9 // 10 <= made and abs(made - steps) <= 10  # the last measurement is made at 9/10


def test_a_command_that_fails_is_an_error():
    assert "this failed: -c raise SystemExit(3)" in error_line("-m", "scripts.measure", "-c", "raise SystemExit(3)")


@pytest.mark.apart
def test_predictions_are_saved_and_read():
    out = run("-m", "scripts.measure_predictions", "--examples", 40, "--seq-len", 16).stdout
    assert re.search(r"\d+ cells are right", out)
    assert re.search(r"\| save \| [\d.]+ \| \d+ \|\n\| read \| [\d.]+ \| \d+ \|", out)


def test_the_steps_of_a_huge_dataset_at_a_small_size(tmp_path, capsys):
    write(tmp_path, puzzles=20_000, sets=4, identifiers=100)
    for number, step in enumerate((open_train, first_batch, first_test_batch, identity, names, whole)):
        measured(step, number, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"| {number}" for number in range(6)]
    assert all(re.fullmatch(r"\| \d \| [^|]+ \| \d+\.\d\d \| \d+ \|", line) for line in lines)


@pytest.mark.parametrize(
    ("main", "option", "value"),
    [
        (measure_predictions.main, "--examples", "0"),
        (measure_predictions.main, "--seq-len", "-1"),
        (measure_voting.main, "--num-aug", "-1"),
        (measure_voting.main, "--wrong", "1.5"),
        (measure_dataset.main, "--sets", "0"),
        (measure_dataset.main, "--puzzles", "-1"),
    ],
)
def test_a_number_that_cannot_be_is_one_line(main, option, value, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["measure", option, value])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and option in line
