"""The study's plan, and its tables from run folders: python -m pytest tests/test_study.py"""

import json

import numpy as np
import pytest

from errors import UserError
from scripts import study
from scripts.study import ARCHITECTURES, HRM, TASKS, VARIANTS, StudyConfig, StudyRun, planned_runs, train
from scripts.study_results import write_results
from tests.in_memory import build_head, composed

SPEED = {"seconds": 0.5, "flops": 2e10, "parameters": 131_970}


def config_of(folder, **changes) -> StudyConfig:
    return StudyConfig(folder=str(folder), **{"budget": 1} | changes)


def test_every_model_is_trained_with_every_seed(tmp_path):
    runs = list(planned_runs(config_of(tmp_path)))
    assert len({run.name for run in runs}) == len(runs) == 3 * (len(TASKS) * len(ARCHITECTURES) + 2 * len(VARIANTS))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    only = list(planned_runs(config_of(tmp_path, parts=["variants"], tasks=["sudoku-4x4"], seeds=1)))
    assert [run.model for run in only] == ["HRM", *VARIANTS]


def test_models_can_be_named(tmp_path):
    """As their folders are."""
    config = config_of(tmp_path, tasks=["sudoku-4x4", "maze-9x9"], models=["hrm-1-segment", "trm-mlp"], seeds=1)
    names = [run.name for run in planned_runs(config)]
    assert names == [
        "sudoku-4x4/trm-mlp-seed0", "sudoku-4x4/hrm-1-segment-seed0", "maze-9x9/trm-mlp-seed0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": ["variants"], "tasks": ["maze-9x9"]},
        {"parts": ["family"], "models": ["hrm-1-segment"]},
        {"tasks": ["maze-9x9"], "models": ["hrm-no-q-target"], "results": True},
    ],
)
def test_a_study_without_a_run_is_refused(tmp_path, commands, changes):
    with pytest.raises(UserError, match="have no run in common"):
        study.study(config_of(tmp_path, **changes))
    assert not commands and not list(tmp_path.iterdir())


def test_the_models_are_of_about_equal_size():
    """On Sudokus; TRM's mixing of positions by weights grows with their number."""
    configs = [composed(*overrides, experiment="study") for overrides in (ARCHITECTURES | VARIANTS).values()]
    for cells, vocab in ((16, 6), (36, 8)):
        heads = [build_head(config, "meta", seq_len=cells, vocab_size=vocab) for config in configs]
        sizes = {sum(p.numel() for p in head.parameters()) for head in heads}
        assert max(sizes) < 1.2 * min(sizes)


@pytest.fixture
def commands(monkeypatch):
    """What would be run; a training writes the checkpoint that it is asked for."""
    done = []

    def command(*args, log):
        done.append(args)
        given = dict(arg.split("=", 1) for arg in args if "=" in arg and not arg.startswith("+"))
        if args[0] == "pretrain.py":
            steps = int(given["epochs"]) * study.GROUPS // 32
            folder = log.with_suffix("")
            folder.mkdir(parents=True)
            (folder / f"step_{steps}_ema").touch()

    monkeypatch.setattr(study, "command", command)
    return done


def test_a_run_uses_up_the_larger_budget_and_is_made_once(tmp_path, commands):
    config, run = config_of(tmp_path), StudyRun("maze-9x9", "URM", ARCHITECTURES["URM"], 1)
    speed = {"maze-9x9": {"URM": SPEED}}
    train(config, run, speed)
    given = dict(arg.split("=", 1) for arg in commands[0][1:])
    steps = int(given["epochs"]) * study.GROUPS // 32
    minutes, teraflops = TASKS["maze-9x9"].minutes, TASKS["maze-9x9"].teraflops
    need = max(minutes * 60 / 0.5, teraflops * 1e12 / 2e10)
    assert need <= steps < need * (1 + 2 / 8)
    assert int(given["epochs"]) % int(given["eval_interval"]) == 0
    composed(*commands[0][2:], experiment="study")  # pretrain.py takes every key
    train(config, run, speed)
    assert len(commands) == 1


def test_all_models_with_rounds_have_one(tmp_path):
    """And every key is one of the model's."""
    for overrides in ARCHITECTURES.values():
        run = composed(*study.settings("maze-9x9-one-round", overrides), experiment="study")
        cycles = [getattr(run.arch, key, None) for key in ("H_cycles", "L_cycles")]
        assert cycles in ([None, None], [1, 2])


@pytest.fixture
def interrupted_study(tmp_path, commands, monkeypatch):
    """Of 4×4 Sudokus with twice the budget, which has two runs."""
    monkeypatch.setattr(study, "build_datasets", lambda config: None)
    monkeypatch.setattr(study, "measure_speeds", lambda *_: dict.fromkeys([*ARCHITECTURES, *VARIANTS], SPEED))
    monkeypatch.setattr(study, "planned_runs", lambda config: planned_runs(config.model_copy(update={"seeds": 1})))
    monkeypatch.setattr("scripts.study_results.write_results", lambda *_: None)
    return config_of(tmp_path, tasks=["sudoku-4x4"], parts=["variants"], budget=2)


def test_a_study_keeps_its_budget(interrupted_study, commands, capsys):
    """It goes on with it where none is given, and refuses another before anything is done."""
    study.study(interrupted_study)
    assert f"timing a step of {len(ARCHITECTURES)} models, once" in capsys.readouterr().out
    trained = [words for words in commands if words[0] == "pretrain.py"]
    for budget in (None, 2):
        study.study(interrupted_study.model_copy(update={"budget": budget}))
    for changes in ({}, {"results": True}):
        with pytest.raises(UserError, match=r"is a study with budget=2; leave it out, or give another folder"):
            study.study(interrupted_study.model_copy(update={"budget": 1, **changes}))
    assert [words for words in commands if words[0] == "pretrain.py"] == trained


def test_a_model_that_is_new_is_timed_alone(interrupted_study, monkeypatch):
    """The others keep the lengths of their runs."""
    study.study(interrupted_study)
    monkeypatch.setitem(ARCHITECTURES, "gated", ("arch=transformer", "arch.num_layers=3"))
    asked = []
    monkeypatch.setattr(study, "measure_speeds", lambda _, task, models: asked.append([*models]) or {"gated": SPEED})
    study.study(interrupted_study)
    assert asked == [["gated"]]
    assert study.known_speeds(study.Path(interrupted_study.folder))["sudoku-4x4"].keys() == {
        *ARCHITECTURES, *VARIANTS,
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"budget": "1"}',
        '{"budget": NaN}',
        '{"budget": Infinity}',
        '{"budget": true}',
        '{"budget": 101}',
        "{",
    ],
)
def test_a_damaged_budget_is_refused(tmp_path, commands, content):
    (tmp_path / "budget.json").write_text(content)
    with pytest.raises(
        UserError,
        match=r"budget.json (holds no budget|is not JSON .*); delete it, and give the budget that the study had",
    ):
        study.study(config_of(tmp_path))
    assert not commands


def test_a_study_of_an_earlier_version_goes_on_and_keeps_the_budget_that_it_is_given(
    interrupted_study, tmp_path, monkeypatch
):
    monkeypatch.setattr(study, "train", lambda *_: None)
    (tmp_path / "runs").mkdir()
    file = tmp_path / "budget.json"
    for budget, saved in ((None, False), (3, True)):
        study.study(interrupted_study.model_copy(update={"budget": budget}))
        assert file.exists() is saved
    assert json.loads(file.read_text()) == {"budget": 3}


def write_metrics(folder, accuracies, at_halt):
    folder.mkdir(parents=True)
    lines = [{"step": 1, "train/lm_loss": 1.0}]
    for step, right, halted in zip((100, 200, 300), accuracies, at_halt, strict=True):
        lines.append({"step": step, "eval/exact_accuracy": right, "eval/halt_q/exact_accuracy": halted,
                      "eval/halt_q/steps": 2.5})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_results_are_medians_and_ranges_at_the_budgets(tmp_path, capsys):
    """1 minute is 120 steps of half a second, 3 TFLOP 150 steps; evaluations are interpolated in between."""
    config = config_of(tmp_path, tasks=["sudoku-4x4"])
    runs = [run for run in planned_runs(config) if run.model == "HRM"]
    for run, right in zip(runs, (0.2, 0.4, 0.9), strict=True):
        write_metrics(study.run_folder(config, run), (0.1, right, 1), (0.1, right / 2, 1))
        report = {"limits": [1, 2, 4, 8, 16, 32, 64], "halt_max": {"exact_accuracy": [right] * 7}}
        (study.run_folder(config, run) / "segments.json").write_text(json.dumps(report))
    speed = {"sudoku-4x4": dict.fromkeys([*ARCHITECTURES, *VARIANTS], SPEED)}
    write_results(config, runs, speed)
    text = (tmp_path / "results.md").read_text()
    capsys.readouterr()
    at_120 = [100 * np.interp(120, [100, 200], [0.1, right]) for right in (0.2, 0.4, 0.9)]
    halted = [100 * np.interp(120, [100, 200], [0.1, right / 2]) for right in (0.2, 0.4, 0.9)]
    at_150 = [[100 * np.interp(150, [100, 200], [0.1, right / share]) for right in (0.2, 0.4, 0.9)] for share in (1, 2)]
    expected = [
        f"{np.median(values):.1f} ({min(values):.1f}–{max(values):.1f})" for values in (at_120, halted, *at_150)
    ]
    assert (
        f"| HRM | 132 | 20.00 | 500 | 120 | {' | '.join([*expected[:2], '150', *expected[2:]])} | 2.5 (2.5–2.5) |"
        in text
    )
    assert f"| HRM, 8 segments | {expected[0]} | {expected[1]} | 2.5 (2.5–2.5) | 40.0 (20.0–90.0) |" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"family.png", "segments.png"}


@pytest.mark.parametrize(
    ("part", "title", "picture"),
    [("family", "**sudoku-4x4**", "family.png"), ("variants", "**sudoku-4x4, 120 steps of HRM**", "segments.png")],
)
def test_results_of_one_part_are_of_that_alone(tmp_path, part, title, picture):
    config = config_of(tmp_path, tasks=["sudoku-4x4"], parts=[part], seeds=1)
    runs = list(planned_runs(config))
    for run in runs:
        write_metrics(study.run_folder(config, run), [0.5] * 3, [0.5] * 3)
        report = {"limits": [1, 2, 4, 8, 16, 32, 64], "halt_max": {"exact_accuracy": [0.5] * 7}}
        (study.run_folder(config, run) / "segments.json").write_text(json.dumps(report))
    write_results(config, runs, {"sudoku-4x4": dict.fromkeys([*ARCHITECTURES, *VARIANTS], SPEED)})
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("**")] == [title]
    assert len(lines) == 4 + len(runs)  # title, empty line, head
    assert [path.name for path in tmp_path.glob("*.png")] == [picture]


def test_hrm_is_run_with_more_segments_than_trained(tmp_path, commands):
    train(config_of(tmp_path), StudyRun("sudoku-4x4", "HRM", HRM, 0), {"sudoku-4x4": {"HRM": SPEED}})
    assert commands[1][:3] == ("-m", "evaluators.figures", "scaling")
    assert "max_steps=64" in commands[1]


def test_results_are_of_the_tasks_that_there_are(tmp_path, commands, monkeypatch, capsys):
    monkeypatch.setattr(study, "measure_speeds", lambda *_: pytest.fail("results=true measures"))
    speed = {"sudoku-4x4": dict.fromkeys([*ARCHITECTURES, *VARIANTS], SPEED)}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    write_metrics(study.run_folder(config_of(tmp_path), StudyRun("sudoku-4x4", "HRM", HRM, 0)), [0.5] * 3, [0.5] * 3)
    study.study(config_of(tmp_path, results=True))
    printed = capsys.readouterr().out
    assert "| HRM |" in printed and "sudoku-6x6, maze-9x9, maze-9x9-one-round: not in this study yet\n" in printed
    assert not commands
    assert not (tmp_path / "segments.png").exists()  # nothing was run with other segments


def test_results_of_no_study_are_refused(tmp_path, commands):
    with pytest.raises(UserError, match="holds no study yet"):
        study.study(config_of(tmp_path, results=True))
    assert not commands and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["sudoku-6x6"]}, "has no sudoku-6x6; give tasks="),
        ({"seeds": 1}, "holds no evaluation of such a run yet"),
    ],
)
def test_results_of_what_a_study_has_not_are_refused(tmp_path, commands, changes, message):
    """Of a task that it does not have, and of runs that have not come to their first evaluation."""
    speed = {"sudoku-4x4": dict.fromkeys([*ARCHITECTURES, *VARIANTS], SPEED)}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    with pytest.raises(UserError, match=message):
        study.study(config_of(tmp_path, results=True, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_what_is_named_twice_is_run_and_counted_once(tmp_path):
    config = config_of(tmp_path, tasks=["sudoku-4x4", "maze-9x9", "sudoku-4x4"])
    assert config.tasks == ["sudoku-4x4", "maze-9x9"]
