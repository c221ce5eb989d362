"""Searches with the models of a study, compared: python -m scripts.search_study study=study folder=search [key=value …]

Searches the held-out puzzles of a study (scripts/study.py) with the last weights of each of its models: deeper, in more
views, from more starts, and until the model halts. Each is a normal search folder; a command that was stopped goes on
when it is given again. `search.md` holds the tables, `search.png` accuracy against counted operations, of all searches
that there are.
"""

import training.threads  # noqa: F401, before torch loads

# isort: split

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from errors import UserError, one_line_errors
from evaluators.figure_plots import DPI
from evaluators.search import SearchConfig, run_search
from evaluators.search_rules import RULES
from files import read_json, write_atomically
from scripts.study import (
    ARCHITECTURES,
    PUZZLES,
    TASKS,
    StudyConfig,
    StudyRun,
    Tasks,
    known_speeds,
    last_checkpoint,
    planned_runs,
    with_its_budget,
)
from scripts.study_results import COLOURS, percent, spread, table
from training.curves import plain
from training.distributed import Ranks
from training.options import StrictModel, from_cli

# Of equal cost, segment by segment: depth 32 and 4 views; depth 64, 8 views, 8 starts. (Trained are 8 segments.)
SEARCHES = {
    "as trained": (),
    "until it halts": ("choose=first_halt", "patience=1"),
    "depth 32": ("depth=32",),
    "4 views": ("views=4",),
    "depth 64": ("depth=64",),
    "8 views": ("views=8",),
    "8 views, until settled": ("views=8", "patience=2"),
    "8 starts with noise": ("start=noise", "breadth=8"),
    "8 random starts": ("start=random", "breadth=8"),
}
MARKERS = dict(zip(SEARCHES, "os>^*vDPX", strict=True))
ALL_RULES = "8 views"  # the search whose rules the second table compares
RULE = "majority_valid"


class SearchStudyConfig(StrictModel):
    study: str = Field(min_length=1, description="folder of the study whose models are searched")
    folder: str = Field(min_length=1, description="where searches and results go")
    seeds: int = Field(default=3, ge=1, description="of the study's runs: 0, 1, …")
    tasks: Tasks = Field(default=list(TASKS), min_length=1, description="kinds of puzzles")
    puzzles: int = Field(default=200, ge=1, description="held-out puzzles of each search, the same for all models")
    results: bool = Field(default=False, description="make no search, write the results of those that there are")


class OneSearch(NamedTuple):
    run: StudyRun
    name: str

    def folder(self, config: SearchStudyConfig) -> Path:
        return Path(config.folder).resolve() / self.run.name / self.name.replace(", ", "-").replace(" ", "-")


def planned_searches(config: SearchStudyConfig) -> Iterator[OneSearch]:
    for run in planned_runs(family(config)):
        for name in SEARCHES:
            if run.model != "direct prediction" or "depth" not in name:  # trained with one segment, run with one
                yield OneSearch(run, name)


def family(config: SearchStudyConfig) -> StudyConfig:
    study = StudyConfig(folder=config.study, seeds=config.seeds, tasks=config.tasks, parts=["family"])
    return with_its_budget(study, write=False)


def search(config: SearchStudyConfig, one: OneSearch, checkpoint: Path) -> None:
    folder, puzzles = one.folder(config), min(config.puzzles, PUZZLES)
    if (report := folder / "report.json").exists():
        if (its := read_json(report, "remove its folder to search anew").get("puzzles")) != puzzles:
            raise UserError(f"{report} is of {its} puzzles, not of {puzzles}; give puzzles={its}, or another folder")
    else:
        words = [f"checkpoint={checkpoint}", *SEARCHES[one.name], f"max_examples={config.puzzles}",
                 f"output_dir={folder}", f"resume={json.dumps(folder.exists())}"]  # fmt: skip
        run_search(from_cli(SearchConfig, words, ""), Ranks(0, 1, 0), torch.device("cpu"))


def search_study(config: SearchStudyConfig) -> None:
    speed, searches = known_speeds(Path(config.study)), list(planned_searches(config))
    if not speed:
        raise UserError(f"study={config.study} holds no study; make one with python -m scripts.study folder=…")
    missing = [task for task in config.tasks if task not in speed]
    if missing and not config.results:
        raise UserError(f"study={config.study} has no {missing[0]}; give tasks=[{','.join(speed)}]")
    for number, one in enumerate([] if config.results else searches, 1):
        checkpoint = last_checkpoint(family(config), one.run, speed)
        if checkpoint.exists():
            search(config, one, checkpoint)
            print(f"{number}/{len(searches)} {one.run.name}: {one.name}", flush=True)
        else:
            print(f"{number}/{len(searches)} {one.run.name}: not trained yet, left out", flush=True)
    write_results(config, searches)


# Results


Reports = dict[tuple[str, str, str], list[dict]]  # task, model, search -> the reports of all seeds


def write_results(config: SearchStudyConfig, searches: list[OneSearch]) -> None:
    reports: Reports = {}
    for one in searches:
        path = one.folder(config) / "report.json"
        if path.exists():
            key = (one.run.task, one.run.model, one.name)
            reports.setdefault(key, []).append(read_json(path, "remove its folder and search anew"))
    if not reports:
        raise UserError(f"folder={config.folder} holds no search yet")
    tasks = [task for task in config.tasks if any(of == task for of, *_ in reports)]
    tables = [part for task in tasks for part in (searches_table(task, reports), rules_table(task, reports))]
    text, folder = "\n\n".join(filter(None, tables)), Path(config.folder)
    figure = draw_searches(tasks, reports)
    write_atomically(folder / "search.md", lambda file: file.write(text.encode() + b"\n"))
    write_atomically(folder / "search.png", lambda file: figure.savefig(file, format="png", dpi=DPI))
    print(f"{text}\n\nwritten: {folder}/search.md, search.png")


def share(report: dict, rule: str) -> float:
    """Of the puzzles that `rule` has right; `oracle` is pass@K."""
    return (report["oracle_right"] if rule == "oracle" else report["right"][rule]) / report["puzzles"]


def rule_of(name: str) -> str:
    return "first_halt" if name == "until it halts" else RULE


def row(task: str, reports: Reports, label: str, name: str, cell: Callable[[list[dict]], str]) -> list[str]:
    """What `cell` makes of a search's reports, for each model."""
    return [label, *(cell(reports.get((task, model, name), [])) for model in ARCHITECTURES)]


def accuracy(rule: str) -> Callable[[list[dict]], str]:
    return lambda found: percent([share(report, rule) for report in found])


def megaflops(found: list[dict]) -> str:
    """The same for all seeds."""
    return spread([report["flops_per_puzzle"] / 1e6 for report in found[:1]])


def searches_table(task: str, reports: Reports) -> str:
    """Accuracy of each search; how many segments those took that end early; what an answer as trained costs."""
    rows = [row(task, reports, name, name, accuracy(rule_of(name))) for name in SEARCHES]
    for name in ("until it halts", "8 views, until settled"):
        label = f"segments, {name}"
        rows.append(row(task, reports, label, name, lambda found: spread([report["mean_steps"] for report in found])))
    rows.append(row(task, reports, "MFLOP an answer, as trained", "as trained", megaflops))
    return f"**{task}**, puzzles right, %\n\n{table(['', *ARCHITECTURES], rows)}"


def rules_table(task: str, reports: Reports) -> str:
    if not any(key[0] == task and key[2] == ALL_RULES for key in reports):
        return ""
    rows = [row(task, reports, rule, ALL_RULES, accuracy(rule)) for rule in RULES]
    rows.append(row(task, reports, "pass@8, looks at labels", ALL_RULES, accuracy("oracle")))
    return f"**{task}**, {ALL_RULES}, by rule, puzzles right, %\n\n{table(['', *ARCHITECTURES], rows)}"


def draw_searches(tasks: Sequence[str], reports: Reports) -> Figure:
    """Median accuracy against operations per puzzle; the line is the front, which no other search beats."""
    figure = Figure(figsize=(5.2 * len(tasks), 4.6), layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        points = []
        for (of, model, name), found in reports.items():
            if of == task:
                cost = np.median([report["flops_per_puzzle"] for report in found])
                right = 100 * np.median([share(report, rule_of(name)) for report in found])
                axis.plot(cost, right, MARKERS[name], color=COLOURS[model], ms=6, mec="white", mew=0.5)
                points.append((cost, right))
        draw_front(axis, points)
        axis.set(xscale="log", title=task, xlabel="operations per puzzle", ylim=(-2, 102))
        plain(axis)
    figure.axes[0].set_ylabel(f"puzzles right, %, by {RULE}")
    first = figure.axes[0]
    legend = [first.plot([], [], "o", color=colour, label=model)[0] for model, colour in COLOURS.items()]
    legend += [first.plot([], [], marker, color="#444444", label=name)[0] for name, marker in MARKERS.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(5, 3 * len(tasks)), frameon=False, fontsize=8)
    return figure


def draw_front(axis: Axes, points: list[tuple[float, float]]) -> None:
    best, front = -1.0, []
    for cost, right in sorted(points):
        if right > best:
            best = right
            front.append((cost, right))
    axis.step(*zip(*front, strict=True), where="post", color="#444444", lw=1, alpha=0.6, zorder=0)


def main() -> None:
    with one_line_errors():
        search_study(from_cli(SearchStudyConfig, sys.argv[1:], __doc__))


if __name__ == "__main__":
    main()
