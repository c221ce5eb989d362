"""The speedrun's verdict and its record of runs, without training: python -m pytest tests/test_speedrun.py"""

import json
from pathlib import Path

import pytest

from errors import UserError
from scripts import speedrun
from scripts.speedrun import SpeedrunConfig, reaches_goal


def accuracies(*of_both: tuple[float, float]) -> list[dict]:
    return [{"accuracy": {"all steps": one, "where it halts": other}} for one, other in of_both]


@pytest.mark.parametrize(
    ("results", "reached"),
    [
        (accuracies((0.99, 0.99), (1.0, 1.0), (0.98, 0.98)), True),
        (accuracies((0.99, 0.99), (1.0, 1.0), (0.98, 0.9775)), False),  # one run below 98 % where it halts
        (accuracies((0.9875, 1.0), (1.0, 1.0), (0.985, 1.0)), False),  # the median of all steps
        (accuracies((1.0, 0.9875), (1.0, 1.0), (1.0, 0.985)), False),  # the median where it halts
    ],
)
def test_the_goal_is_a_median_and_a_worst_run_under_both_rules(results, reached):
    assert reaches_goal(results) is reached


@pytest.fixture
def commands(monkeypatch):
    """What would be run; a training leaves the metrics of two evaluations."""
    done = []

    def command(*args, log, threads=1):
        done.append(args)
        given = dict(arg.split("=", 1) for arg in args if "=" in arg)
        if args[0] == "pretrain.py":
            folder = Path(given["checkpoint_path"])
            folder.mkdir(parents=True)
            evaluations = [
                {"step": step, "eval/exact_accuracy": right, "eval/halt_q/exact_accuracy": right / 2}
                for step, right in ((100, 1.0), (200, 0.995))
            ]
            lines = [{"step": 199, "train/count": 3.0}, *evaluations, {"step": 201, "train/count": 1.0}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            Path(args[args.index("--output-dir") + 1]).mkdir(parents=True)

    monkeypatch.setattr(speedrun, "command", command)
    return done


def test_the_last_evaluation_counts_and_no_run_is_made_twice(tmp_path, commands, capsys):
    config = SpeedrunConfig(folder=str(tmp_path), seeds=2, overrides=["lr=1e-3"])
    speedrun.speedrun(config)
    assert [args[0] for args in commands] == ["dataset/build_sudoku_dataset.py", "pretrain.py", "pretrain.py"]
    assert ["lr=1e-3" in args for args in commands] == [False, True, True]
    assert {"seed=0", "seed=1"} <= {arg for args in commands for arg in args}
    shown = capsys.readouterr().out
    assert "200 steps; all steps 99.50 %, where it halts 49.75 %" in shown
    assert "misses the goal" in shown
    speedrun.speedrun(config)
    assert len(commands) == 3
    with pytest.raises(UserError, match="holds another attempt"):
        speedrun.speedrun(SpeedrunConfig(folder=str(tmp_path), seeds=2))
    other = SpeedrunConfig(folder=str(tmp_path), seeds=1, threads=1, overrides=["lr=1e-3"])
    speedrun.speedrun(other)  # beside it
    assert len(commands) == 4


def test_a_run_that_has_not_ended_is_not_taken_for_one(tmp_path, commands):
    (tmp_path / "threads2-seed0").mkdir()
    with pytest.raises(UserError, match="has not ended; delete it"):
        speedrun.speedrun(SpeedrunConfig(folder=str(tmp_path)))
