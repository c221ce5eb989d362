"""The tables and curves of the study (scripts/study.py), from what its runs have left in their folders.

`results.md` holds the tables, `family.png` accuracy against minutes and operations, `segments.png` accuracy against the
segments at inference. Accuracies are medians over the seeds, with the smallest and the largest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from errors import UserError
from evaluators.figure_plots import BLUE, DPI, GREEN, ORANGE, PURPLE, VERMILLION
from files import read_json, write_atomically
from scripts.study import ARCHITECTURES, MOST_SEGMENTS, TASKS, VARIANT_TASKS, VARIANTS, budgets, run_folder
from training.curves import plain, read_lines

if TYPE_CHECKING:
    from scripts.study import StudyConfig, StudyRun

RULES = {"max": "eval/exact_accuracy", "q": "eval/halt_q/exact_accuracy"}
# Of any number of models: Okabe and Ito's, then matplotlib's
MORE_COLOURS = (BLUE, ORANGE, VERMILLION, GREEN, PURPLE, "#777777", *colormaps["tab20"].colors)
COLOURS = dict(zip(ARCHITECTURES, MORE_COLOURS, strict=False))
VARIANT_COLOURS = (GREEN, ORANGE, PURPLE, "#777777", VERMILLION, BLUE)
UNITS = {"minutes": "minutes of one core", "flops": "10¹² operations"}


class Curve(NamedTuple):
    """The evaluations of one run."""

    steps: np.ndarray
    values: dict[str, np.ndarray]  # by rule, and `segments`: the mean number until the model halts

    def at(self, steps: float, name: str) -> float:
        """Between two evaluations the value is interpolated; NaN where the run has not got yet."""
        return float(np.interp(steps, self.steps, self.values[name], right=np.nan))


def read_curve(folder: Path) -> Curve | None:
    path = folder / "metrics.jsonl"
    lines = [line for line in read_lines(path) if RULES["q"] in line] if path.exists() else []
    if not lines:
        return None
    values = {rule: np.array([0, *(line[metric] for line in lines)]) for rule, metric in RULES.items()}
    segments = np.array([line["eval/halt_q/steps"] for line in lines])
    values["segments"] = np.array([segments[0], *segments])
    return Curve(np.array([0, *(line["step"] for line in lines)]), values)


def write_results(config: "StudyConfig", runs: Sequence["StudyRun"], speed: dict) -> None:
    found: dict[tuple[str, str], list[Curve]] = {}
    for run in runs:
        if (curve := read_curve(run_folder(config, run))) is not None:
            found.setdefault((run.task, run.model), []).append(curve)
    if not found:
        raise UserError(f"folder={config.folder} holds no evaluation of such a run yet; go on without results=true")
    at_inference = read_at_inference(config, runs)
    tables, figures = [], {}
    if "family" in config.parts:
        tables += [family_table(config, task, found, speed) for task in config.tasks]
        figures["family.png"] = draw_family(config, found, speed)
    if "variants" in config.parts:
        tasks = [task for task in config.tasks if task in VARIANT_TASKS]
        tables += [segments_table(config, task, found, speed, at_inference) for task in tasks]
        if at_inference:
            figures["segments.png"] = draw_segments(at_inference)
    text = "\n\n".join(filter(None, tables))
    folder = Path(config.folder)
    write_atomically(folder / "results.md", lambda file: file.write(text.encode() + b"\n"))
    for name, figure in figures.items():
        write_atomically(folder / name, lambda file, figure=figure: figure.savefig(file, dpi=DPI))
    print(f"{text}\n\nwritten: {folder}/{', '.join(['results.md', *figures])}")


# Tables


def spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Median, with the smallest and the largest of several values; `–` for none."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return "–"
    middle, low, high = (form.format(f(values)) for f in (np.median, min, max))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def percent(values: Sequence[float]) -> str:
    return spread([100 * value for value in values])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def family_table(config: "StudyConfig", task: str, found: dict, speed: dict) -> str:
    minutes, teraflops = config.budget * TASKS[task].minutes, config.budget * TASKS[task].teraflops
    rows = []
    for model in ARCHITECTURES:
        curves = found.get((task, model), [])
        if not curves:
            continue
        measured, steps = speed[task][model], budgets(config, task, model, speed)
        cells = [model, f"{measured['parameters'] / 1e3:.0f}", f"{measured['flops'] / 1e9:.2f}",
                 f"{1e3 * measured['seconds']:.0f}"]  # fmt: skip
        for budget in ("minutes", "flops"):
            cells.append(f"{steps[budget]:,.0f}")
            cells += [percent([curve.at(steps[budget], rule) for curve in curves]) for rule in RULES]
        cells.append(spread([curve.at(steps["minutes"], "segments") for curve in curves]))
        rows.append(cells)
    head = ["", "thousand weights", "GFLOP a step", "ms a step", f"steps in {minutes:g} min", "max, %", "q, %",
            f"steps in {teraflops:g} TFLOP", "max, %", "q, %", "segments, q"]  # fmt: skip
    return f"**{task}**\n\n{table(head, rows)}" if rows else ""


def segments_table(config: "StudyConfig", task: str, found: dict, speed: dict, at_inference: dict) -> str:
    """HRM trained with fewer segments, or without the target of Q(continue); with as many as trained at inference."""
    steps = budgets(config, task, "HRM", speed)["minutes"]
    rows = []
    for model in (*VARIANTS, "HRM"):
        curves = found.get((task, model), [])
        if not curves:
            continue
        cells = ["HRM, 8 segments" if model == "HRM" else model]
        cells += [percent([curve.at(steps, rule) for curve in curves]) for rule in RULES]
        cells.append(spread([curve.at(steps, "segments") for curve in curves]))
        reports = at_inference.get((task, model), [])
        limits = reports[0]["limits"] if reports else []
        cells += [
            percent([report["halt_max"]["exact_accuracy"][limits.index(n)] for report in reports if n in limits])
            for n in (1, 2, 4, 8, 16, 64)
        ]
        rows.append(cells)
    head = ["", "max, %", "q, %", "segments, q", *(f"run with {n}, %" for n in (1, 2, 4, 8, 16, 64))]
    return f"**{task}, {steps:,.0f} steps of HRM**\n\n{table(head, rows)}" if rows else ""


def read_at_inference(config: "StudyConfig", runs: Sequence["StudyRun"]) -> dict[tuple[str, str], list[dict]]:
    """(task, model) -> for each seed, accuracy against the number of segments at inference."""
    reports = {}
    for run in runs:
        path = run_folder(config, run) / "segments.json"
        if path.exists():
            reports.setdefault((run.task, run.model), []).append(read_json(path, "remove it to measure anew"))
    return reports


# Curves


def draw_family(config: "StudyConfig", found: dict, speed: dict) -> Figure:
    """Accuracy when all segments run, against each budget; a band from the smallest to the largest of the seeds."""
    figure = Figure(figsize=(4.2 * len(config.tasks), 6.6), layout="constrained")
    axes = figure.subplots(2, len(config.tasks), squeeze=False, sharey=True)
    for column, task in zip(axes.T, config.tasks, strict=True):
        for axis, budget in zip(column, ("minutes", "flops"), strict=True):
            limit = config.budget * (TASKS[task].minutes if budget == "minutes" else TASKS[task].teraflops)
            for model, colour in COLOURS.items():
                curves = found.get((task, model), [])
                if not curves:
                    continue
                steps = np.linspace(0, budgets(config, task, model, speed)[budget], 60)
                values = 100 * np.array([[curve.at(step, "max") for step in steps] for curve in curves])
                spent = np.linspace(0, limit, 60)
                axis.plot(spent, np.median(values, 0), color=colour, label=model, lw=1.8)
                axis.fill_between(spent, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
            axis.set(xlabel=UNITS[budget], title=task if budget == "minutes" else None, ylim=(-2, 102))
            plain(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("held-out puzzles right, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 2 * len(config.tasks)),
        frameon=False,
        fontsize=9,
    )
    return figure


def draw_segments(at_inference: dict[tuple[str, str], list[dict]]) -> Figure:
    """Accuracy of HRM against the segments at inference, for each number of segments in training."""
    tasks = [task for task in TASKS if any(of == task for of, _ in at_inference)]
    figure = Figure(figsize=(5.2 * max(1, len(tasks)), 4.2), layout="constrained")
    for axis, task in zip(figure.subplots(1, max(1, len(tasks)), squeeze=False)[0], tasks, strict=False):
        for model, colour in zip((*VARIANTS, "HRM"), (*VARIANT_COLOURS, *MORE_COLOURS[6:]), strict=False):
            reports = at_inference.get((task, model), [])
            if not reports:
                continue
            values = 100 * np.array([report["halt_max"]["exact_accuracy"] for report in reports])
            limits, name = reports[0]["limits"], "HRM, 8 segments" if model == "HRM" else model
            axis.plot(limits, np.median(values, 0), color=colour, marker="o", ms=4, lw=1.6, label=f"trained: {name}")
            axis.fill_between(limits, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="segments at inference", ylabel="held-out puzzles right, %", title=task, ylim=(-2, 102))
        axis.set_xticks(
            [2**n for n in range(MOST_SEGMENTS.bit_length())],
            labels=[str(2**n) for n in range(MOST_SEGMENTS.bit_length())],
        )
        plain(axis)
        axis.legend(fontsize=8, frameon=False)
    return figure
