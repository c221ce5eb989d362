"""Every architecture through the whole chain, at a toy size: python -m pytest tests/test_architectures.py

The runs are those of config/experiment, on the 4×4 Sudokus of the reference run.
"""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import evaluate
import solve
from evaluators import figures, search
from tests import warm
from tests.in_memory import FAMILY, build_head, composed
from tests.runs import assert_lines_close, family_overrides, here, lines_with, load, pretrain_here, read_metrics

STEPS = 20  # of 8 sequences: 4 visits of the 40 groups, see `family_overrides`


def most_steps(experiment: str) -> int:
    return composed(*FAMILY[experiment], experiment=experiment).arch.halt_max_steps


@pytest.fixture(scope="module", params=FAMILY)
def run(request, tmp_path_factory) -> tuple[str, Path]:
    """The name of an experiment, and the folder of its run."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    pretrain_here(family_overrides(request.param, folder))
    return request.param, folder


def test_it_learns(run):
    _, folder = run
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "eval/exact_accuracy" in line] == [10, 20]
    assert lines[STEPS - 1]["train/lm_loss"] < 0.95 * lines[0]["train/lm_loss"]


def test_it_goes_on_byte_for_byte_after_stops(run, tmp_path):
    experiment, folder = run
    for _ in range(2):
        pretrain_here(family_overrides(experiment, tmp_path / "run", max_minutes=1e-5))
    pretrain_here(family_overrides(experiment, tmp_path / "run"))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    for name in ("step_20", "step_20_ema"):
        mine, theirs = load(tmp_path / "run" / name), load(folder / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_it_is_evaluated_under_both_rules(run):
    experiment, folder = run
    lines = {line["step"]: line for line in read_metrics(folder) if "eval/accuracy" in line}
    found = {}
    for halt in ("max", "q"):
        printed = here(evaluate.main, f"checkpoint={folder / 'step_20_ema'}", f"halt={halt}", "device=cpu")
        found[halt] = {key: float(value) for key, value in re.findall(r"(eval/\w+) +(\S+)", printed)}
    assert found["max"]["eval/accuracy"] == pytest.approx(lines[20]["eval/accuracy"], abs=1e-4)
    assert found["max"]["eval/steps"] == most_steps(experiment)
    assert 1 <= found["q"]["eval/steps"] <= most_steps(experiment)


def test_it_solves_a_puzzle(run):
    experiment, folder = run
    words = [f"checkpoint={folder / 'step_20'}", "puzzle=1..4.4...1..4..1", "--json", "device=cpu"]
    answer = json.loads(here(solve.main, *words))
    assert (answer["kind"], len(answer["steps"]), len(answer["answer"])) == ("sudoku", most_steps(experiment), 16)


def test_it_is_searched(run, tmp_path):
    experiment, folder = run
    words = [f"checkpoint={folder / 'step_20'}", "views=2", "breadth=2", "start=random", "patience=1", "json=true"]
    report = json.loads(here(search.main, *words, f"output_dir={tmp_path / 'search'}", "device=cpu"))
    assert (report["puzzles"], report["trajectories"], report["depth"]) == (21, 4, [most_steps(experiment)])
    assert report["oracle_right"] >= max(report["right"].values())
    assert 1 <= report["mean_steps"] <= most_steps(experiment)
    assert report["flops_per_puzzle"] > 0


@pytest.mark.usefixtures("undrawn")
def test_a_figure_of_states_says_which_there_are(run, tmp_path):
    experiment, folder = run
    words = [f"checkpoint={folder / 'step_20'}", f"out={tmp_path}", "examples=2", "device=cpu"]
    here(figures.main, "participation", *words)
    report = json.loads((tmp_path / "step_20_participation.json").read_text())
    inner = build_head(composed(*FAMILY[experiment], experiment=experiment)).model.inner
    assert [*report["trained"]] == [field.name for field in fields(inner.initial_state(1))]


@pytest.mark.apart
@pytest.mark.parametrize("experiment", FAMILY)
def test_two_ranks_are_one_process(tmp_path, experiment):
    """Without exploration: ranks draw from generators of their own. Where the network draws too, they repeat."""
    inner = build_head(composed(*FAMILY[experiment], experiment=experiment)).model.inner
    other, ranks, rtol = ("again", 2, 0) if inner.draws else ("one", None, 1e-3)
    exact = {"arch.halt_exploration_prob": 0, "arch.halt_extra_steps": 0, "epochs": 2}
    for name, number in (("two", 2), (other, ranks)):
        warm.run("pretrain.py", *family_overrides(experiment, tmp_path / name, **exact), ranks=number)
    assert_lines_close(read_metrics(tmp_path / "two"), read_metrics(tmp_path / other), rtol=rtol)


@pytest.mark.apart
@pytest.mark.parametrize("experiment", FAMILY)
def test_it_is_compiled(tmp_path, experiment):
    folders = {mode: tmp_path / mode for mode in ("on", "off")}
    for mode, folder in folders.items():
        words = family_overrides(experiment, folder, compile=mode, epochs=1, eval_interval=1)
        warm.run("pretrain.py", *words, DISABLE_COMPILE="0", TORCHINDUCTOR_VEC_ISA_OK="1")
    on, off = (lines_with(read_metrics(folder), "train/") for folder in folders.values())
    assert_lines_close(on, off, rtol=1e-4)
