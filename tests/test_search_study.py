"""Which searches a study of searches makes, and its tables: python -m pytest tests/test_search_study.py"""

import json
from pathlib import Path

import numpy as np
import pytest

from errors import UserError
from evaluators.search import SearchConfig
from evaluators.search_rules import RULES
from scripts import search_study
from scripts.search_study import SEARCHES, SearchStudyConfig, planned_searches
from scripts.study import ARCHITECTURES, TASKS, VARIANTS, StudyConfig, last_checkpoint, planned_runs, with_its_budget
from tests.test_study import SPEED

SPEEDS = {"sudoku-4x4": dict.fromkeys([*ARCHITECTURES, *VARIANTS], SPEED)}


@pytest.fixture
def config(tmp_path):
    """A study in which only HRM and direct prediction were trained."""
    study = tmp_path / "study"
    study.mkdir()
    (study / "speed.json").write_text(json.dumps(SPEEDS))
    of = StudyConfig(folder=str(study), tasks=["sudoku-4x4"], budget=1)
    for run in planned_runs(of):
        if run.model in ("HRM", "direct prediction"):
            path = last_checkpoint(of, run, SPEEDS)
            path.parent.mkdir(parents=True)
            path.touch()
    return SearchStudyConfig(study=str(study), folder=str(tmp_path / "search"), tasks=["sudoku-4x4"], puzzles=40)


@pytest.fixture
def searched(monkeypatch):
    """The searches that were made; right are seed × 4 puzzles + the number of the rule, of 40."""
    done: list[SearchConfig] = []

    def run_search(asked, ranks, device):
        done.append(asked)
        folder = Path(asked.output_dir)
        folder.mkdir(parents=True)
        seed = int(folder.parent.name[-1])
        right = {rule: 4 * seed + number for number, rule in enumerate(RULES)}
        report = {"puzzles": 40, "right": right, "oracle_right": 20, "mean_steps": 1.5, "flops_per_puzzle": 2e6}
        (folder / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(search_study, "run_search", run_search)
    return done


def test_each_trained_model_is_searched_once(config, searched, capsys):
    search_study.search_study(config)
    assert len(searched) == 3 * (len(SEARCHES) + len(SEARCHES) - 2)  # direct prediction has one segment
    assert {asked.max_examples for asked in searched} == {40}
    assert capsys.readouterr().out.count("not trained yet") == 3 * (len(ARCHITECTURES) - 2) * len(SEARCHES)
    search_study.search_study(config)
    assert len(searched) == 3 * (2 * len(SEARCHES) - 2)


def test_searches_of_other_puzzles_are_not_taken(config, searched, capsys):
    search_study.search_study(config)
    for puzzles in (20, 400, 1000):
        with pytest.raises(UserError, match=rf"is of 40 puzzles, not of {min(puzzles, 400)}; give puzzles=40, or an"):
            search_study.search_study(config.model_copy(update={"puzzles": puzzles}))


def test_a_study_of_another_budget_is_searched(config, searched, capsys):
    of = StudyConfig(folder=config.study, tasks=["sudoku-4x4"], budget=2)
    run = next(planned_runs(of))
    last_checkpoint(of, run, SPEEDS).touch()
    with_its_budget(of, write=True)
    search_study.search_study(config.model_copy(update={"seeds": 1}))
    assert [asked.checkpoint[0] for asked in searched] == [str(last_checkpoint(of, run, SPEEDS))] * len(SEARCHES)


def test_the_tables_have_medians_and_ranges(config, searched, capsys):
    search_study.search_study(config)
    capsys.readouterr()
    text = (Path(config.folder) / "search.md").read_text()
    for name, rule in (("8 views", "majority_valid"), ("until it halts", "first_halt")):
        number = list(RULES).index(rule)
        low, middle, high = (100 * (4 * seed + number) / 40 for seed in range(3))
        assert f"| {name} | {middle:.1f} ({low:.1f}–{high:.1f}) | – |" in text
    assert "| MFLOP an answer, as trained | 2.0 | – |" in text
    assert "| pass@8, looks at labels | 50.0 (50.0–50.0) | – |" in text
    assert (Path(config.folder) / "search.png").stat().st_size > 10_000


def test_the_searches_of_one_group_cost_the_same():
    """The table compares them at equal cost: segments × views × starts."""
    cost = {}
    for name, words in SEARCHES.items():
        given = {key: int(value) for key, value in (word.split("=") for word in words) if value.isdigit()}
        cost[name] = np.prod([given.get("depth", 8), given.get("views", 1), given.get("breadth", 1)])
    assert cost["depth 32"] == cost["4 views"]
    assert len({cost[name] for name in ("depth 64", "8 views", "8 starts with noise", "8 random starts")}) == 1


def test_results_are_of_the_tasks_that_were_searched(config, searched, capsys):
    """Of all that there are by now, one is in the study."""
    search_study.search_study(config)
    search_study.search_study(config.model_copy(update={"tasks": [*TASKS], "results": True}))
    text = (Path(config.folder) / "search.md").read_text()
    assert "**sudoku-4x4**" in text and "maze" not in text
    assert (Path(config.folder) / "search.png").stat().st_size > 5000


def test_a_folder_without_study_or_searches_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="holds no study; make one"):
        search_study.search_study(config.model_copy(update={"study": str(tmp_path / "none")}))
    with pytest.raises(UserError, match=r"has no maze-9x9; give tasks=\[sudoku-4x4\]"):
        search_study.search_study(config.model_copy(update={"tasks": ["sudoku-4x4", "maze-9x9"]}))
    with pytest.raises(UserError, match="holds no search yet"):
        search_study.search_study(config.model_copy(update={"results": True}))
    assert len(list(planned_searches(config))) == 3 * (len(ARCHITECTURES) * len(SEARCHES) - 2)
