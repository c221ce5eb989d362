"""Draws the reports of evaluators/figures.py, the curve of evaluators/search.py, and the votes for ARC tasks.

Colours are those of Okabe and Ito (2008), safe for the colour-blind; boards look as elsewhere (puzzles/draw.py).
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evaluators.arc_voting import Tasks, VotedInput
from puzzles.arc import MAX_GRID_SIZE, Arc
from puzzles.draw import PALETTE, board_image
from puzzles.kind import Kind
from training.curves import plain

DPI = 150
ARC = Arc(MAX_GRID_SIZE, MAX_GRID_SIZE)
PANEL_INCHES = 2.4  # side of an ARC grid
BLUE, ORANGE, GREEN, PURPLE, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
RULE_COLOURS = ("#000000", BLUE, ORANGE, GREEN, VERMILLION, PURPLE, "#56B4E9")  # of the rules of a search
MAX_COLUMNS = 8  # most steps in one figure
STATES = ((VERMILLION, "o"), (BLUE, "s"), (GREEN, "^"), (PURPLE, "D"))  # colour and marker of each, in turn
MODELS = {"trained": ("trained", "-"), "untrained": ("untrained, same shape", "--")}
RULES = {
    "halt_max": ("every puzzle takes all steps", BLUE, "-", "o"),
    "halt_q": ("stops when the model wants to halt", ORANGE, "--", "s"),
}


TITLES = {
    "steps": "Answers after the reasoning steps",
    "participation": "Participation ratio of the states",
    "scaling": "Accuracy against the allowed reasoning steps",
    "reliability": "Accuracy against the model's confidence",
}


def titled(figure: Figure, report: dict[str, Any]) -> Figure:
    """The figure with a line above it that says what it shows, and one with the checkpoint and the puzzles."""
    checkpoint, dataset = ("/".join(Path(report[key]).parts[-2:]) for key in ("checkpoint", "dataset"))
    puzzles = f"{report['examples']:,} puzzle{'s' * (report['examples'] != 1)}"
    about = textwrap.fill(f"{checkpoint} · {puzzles} of {dataset}", int(15 * figure.get_figwidth()))
    figure.suptitle(f"{TITLES[report['figure']]}\n{about}", fontsize=9, x=0.02, ha="left")
    return figure


def draw_steps(report: dict[str, Any]) -> Figure:
    """One row per puzzle: the puzzle, the answer after the steps that changed it (at most 8 of them), the solution."""
    kind, puzzles = report["kind"], report["puzzles"]
    shown = [[spans[i - 1] for i in spread(len(spans), MAX_COLUMNS)] for spans in map(unchanged_spans, puzzles)]
    columns = max(map(len, shown)) + 2
    figure = Figure(figsize=(max(1.6 * columns, 5), 1.95 * len(puzzles) + 0.45), layout="constrained")
    axes = figure.subplots(len(puzzles), columns, squeeze=False)
    for row, puzzle, spans in zip(axes, puzzles, shown, strict=True):
        question, solution = puzzle["puzzle"], puzzle["solution"]
        _show_board(row[0], "puzzle", kind, question, question)
        for axis in row[len(spans) + 1 : -1]:
            axis.set_axis_off()
        for axis, span in zip(row[1:], spans, strict=False):
            first, last = (puzzle["steps"][number - 1] for number in span)
            before = question if span[0] == 1 else puzzle["steps"][span[0] - 2]["answer"]
            changed = kind.visible(first["answer"]) != kind.visible(before)
            solved = first["equal_cells"] == puzzle["cells"] > 0
            numbers = f"step {span[0]}" if first is last else f"steps {span[0]}–{span[1]}"
            title = f"{numbers}{' ✓' if solved else ''}"
            _show_board(axis, title, kind, first["answer"], question, changed=changed, solution=solution)
            axis.title.set_fontweight("bold" if solved else "normal")
            sure = "–".join(dict.fromkeys(f"{100 * step['confidence']:.0f}" for step in (first, last)))
            axis.set_xlabel(f"{first['equal_cells']}/{puzzle['cells']} cells · {sure}% sure", fontsize=7.5)
        _show_board(row[-1], "solution", kind, solution, question)
    meanings = {"changed": "changed in this step", "wrong": "differs from the solution"}
    patches = [Patch(fc=(PALETTE[name], 0.3), ec=PALETTE[name], lw=1.5, label=text) for name, text in meanings.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def unchanged_spans(puzzle: dict[str, Any]) -> list[tuple[int, int]]:
    """The first and the last of the steps, from 1, with one answer, in their order."""
    steps = puzzle["steps"]
    starts = [n for n in range(len(steps)) if n == 0 or (steps[n]["answer"] != steps[n - 1]["answer"]).any()]
    return [(first + 1, end) for first, end in zip(starts, [*starts[1:], len(steps)], strict=True)]


def _show_board(axis: Axes, title: str, kind: Kind, tokens: np.ndarray, question: np.ndarray, **marked: Any) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)
    axis.imshow(np.asarray(board_image(kind, tokens, question, **marked)))
    if not kind.grid(tokens).size:
        axis.text(0.5, 0.5, "empty grid", ha="center", va="center", fontsize=9, transform=axis.transAxes)


def spread(steps: int, most: int) -> list[int]:
    """Up to `most` of the steps 1…`steps`, the first and the last among them, denser at the beginning."""
    if steps <= most:
        return list(range(1, steps + 1))
    shown = np.unique(np.round(np.geomspace(1, steps, most)).astype(int))
    return shown.tolist()


def draw_participation(report: dict[str, Any]) -> Figure:
    """The participation ratio against the number of puzzles, and its last values."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    curve, last = figure.subplots(1, 2, width_ratios=(1.7, 1))
    for model, (model_name, line) in MODELS.items():
        for (state, ratios), (colour, marker) in zip(report[model].items(), cycle(STATES)):
            filled = colour if model == "trained" else "white"
            style = dict(color=colour, ls=line, marker=marker, mfc=filled, ms=5, lw=1.6)
            curve.plot(report["puzzles"], ratios, label=f"{_name(state)}, {model_name}", **style)
    _limits_axis(curve, report["puzzles"])
    curve.set(xlabel="number of puzzles", ylabel=f"participation ratio (at most {report['hidden_size']})")
    curve.set_ylim(bottom=0)
    curve.legend(fontsize=8, frameon=False)

    states = list(report["trained"])
    width = 0.76 / len(states)
    for i, (state, (colour, _)) in enumerate(zip(states, cycle(STATES))):
        values = [report[model][state][-1] for model in MODELS]
        places = np.arange(2) + width * (i - (len(states) - 1) / 2)
        bars = last.bar(places, values, 0.95 * width, color=colour, label=_name(state))
        bars[1].set(facecolor="white", edgecolor=colour, linewidth=1.6)
        last.bar_label(bars, fmt="%.1f", fontsize=8)
    last.set(xticks=(0, 1), xticklabels=MODELS, ylim=(0, 1.15 * last.get_ylim()[1]))
    last.set_title(f"after {report['puzzles'][-1]} puzzles", fontsize=9)
    last.legend(fontsize=8, frameon=False, ncols=2)
    _plain_axes(figure)
    return figure


def draw_scaling(report: dict[str, Any]) -> Figure:
    """Exact accuracy, with its 95 % interval, and mean steps, against the allowed number of steps."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    accuracy, steps = figure.subplots(1, 2)
    limits = np.array(report["limits"])
    for rule, (name, colour, line, marker) in RULES.items():
        style = dict(color=colour, ls=line, marker=marker, ms=5, lw=1.6, label=name)
        exact = np.array(report[rule]["exact_accuracy"])
        accuracy.plot(limits, 100 * exact, **style)
        low, high = wilson_interval(exact, report["scored"])
        accuracy.fill_between(limits, 100 * low, 100 * high, color=colour, alpha=0.15, lw=0)
        steps.plot(limits, report[rule]["mean_steps"], **style)
    accuracy.set(ylabel="exact accuracy, %", ylim=(-2, 102))
    steps.set(ylabel="mean steps taken")
    steps.set_ylim(bottom=0)
    for axis in (accuracy, steps):
        _limits_axis(axis, report["limits"])
        axis.set_xlabel("allowed reasoning steps")
        axis.axvline(report["trained_steps"], color="#808080", lw=1, ls=":", label="as in training")
    steps.legend(fontsize=8, frameon=False)
    _plain_axes(figure)
    return figure


def draw_risk_coverage(report: dict[str, Any], curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Of every rule of a search: the share of wrong answers against the share of puzzles that are answered."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for number, (rule, (coverage, risk)) in enumerate(curves.items()):
        style = dict(
            color=RULE_COLOURS[number], lw=2.4 if rule == report["choose"] else 1.3, ls=("-", "--")[number % 2]
        )
        area = report["abstention"][rule]["auroc"]
        known = "" if area is None else f", AUROC {area:.2f}"
        axis.plot(100 * coverage, 100 * risk, label=f"{rule}{known}", **style)
    axis.set(xlabel="puzzles answered, the surest first, %", ylabel="wrong answers among them, %", xlim=(0, 100))
    axis.set_ylim(bottom=0)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    _plain_axes(figure)
    return figure


def draw_reliability(report: dict[str, Any]) -> Figure:
    """Accuracy against confidence with its 95 % interval, and below how many puzzles are that sure."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=[3, 1], sharex=True, sharey="row")
    for column, (rule, (name, colour, _, _)) in zip(axes.T, RULES.items(), strict=True):
        found = report[rule]
        puzzles = np.array(found["puzzles"])
        edges = np.linspace(0, 1, len(puzzles) + 1)
        some = puzzles > 0
        sure, exact = (np.array(found[key], float)[some] for key in ("confidence", "exact_accuracy"))
        low, high = wilson_interval(exact, puzzles[some])
        column[0].plot([0, 100], [0, 100], color="#808080", lw=1, ls=":")
        spread = 100 * np.maximum(0, np.array([exact - low, high - exact]))
        column[0].errorbar(100 * sure, 100 * exact, yerr=spread, color=colour, marker="o", ms=5, lw=1.6, capsize=2)
        column[0].set_title(f"{name}\nexpected calibration error {100 * found['ece']:.1f} %", fontsize=9)
        column[1].bar(100 * edges[:-1], puzzles, width=100 * np.diff(edges), align="edge", color=colour, ec="w")
        column[1].set_xlabel("the model's confidence, %")
    axes[0, 0].set(ylabel="puzzles right, %", ylim=(-2, 102), xlim=(0, 100))
    axes[1, 0].set_ylabel("puzzles")
    _plain_axes(figure)
    return figure


def wilson_interval(share: np.ndarray, count: int | np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % confidence interval of a share of `count` (Wilson 1927)."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half


def _name(state: str) -> str:
    """z_H -> z with a small H."""
    return f"${state}$" if re.fullmatch(r"[a-zA-Z]_[a-zA-Z0-9]", state) else state


def _limits_axis(axis: Axes, ticks: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def _plain_axes(figure: Figure) -> None:
    for axis in figure.axes:
        plain(axis, "y")


# ARC: the votes of evaluators/arc.py


def draw_tasks(
    tasks: Tasks, attempts: int = 2, demonstrations: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]] | None = None
) -> Figure:
    """One row per test input of the tasks: the input, the right answer, and the `attempts` best candidates.

    Cells of a candidate that differ from the right answer are marked. Above them are the `demonstrations` of the task,
    (input, output) grids of colours (rows, columns), where they are given.
    """
    columns = 2 + attempts
    if not tasks:
        figure = Figure(figsize=(1.2, 0.4), dpi=80)
        figure.add_subplot(frameon=False, xticks=[], yticks=[]).text(0, 0.5, "none", fontsize=11)
        return figure
    rows = []  # of panels, each a function that draws it
    for task, tests in tasks.items():
        shown = [
            partial(_draw_demonstration, number=n, pair=p)
            for n, p in enumerate((demonstrations or {}).get(task, ()), 1)
        ]
        rows += [shown[start : start + columns] for start in range(0, len(shown), columns)]
        for number, test in enumerate(tests, 1):
            title = f"{task}\ninput {number if len(tests) > 1 else ''}"
            panels = [partial(_show_grid, title=title, grid=test.input), partial(_draw_answer, test=test)]
            rows.append(panels + [partial(_draw_attempt, test=test, place=place) for place in range(attempts)])
    figure = Figure(figsize=(PANEL_INCHES * columns, (PANEL_INCHES + 0.5) * len(rows)), dpi=80)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for axes, panels in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in axes:
            axis.set_axis_off()
        for axis, draw in zip(axes, panels, strict=False):
            draw(axis)
    return figure


def _draw_demonstration(axis: Axes, number: int, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """The input above, the output below, on one scale; side by side where that is less long."""
    high, wide = np.max([grid.shape for grid in pair], axis=0)
    beside = high >= wide
    gap = max(1, max(high, wide) // 8)
    side = (high, 2 * wide + gap) if beside else (2 * high + gap, wide)
    cell = max(4, 480 // max(side))
    images = [np.asarray(board_image(ARC, ARC.on_canvas(grid), pixels=cell * max(grid.shape))) for grid in pair]
    paper = np.full((cell * side[0] + 3, cell * side[1] + 3, 3), 255, np.uint8)
    for image, (top, left) in zip(
        images, ((0, 0), (0, cell * (wide + gap)) if beside else (cell * (high + gap), 0)), strict=True
    ):
        paper[top : top + image.shape[0], left : left + image.shape[1]] = image[
            : paper.shape[0] - top, : paper.shape[1] - left
        ]
    axis.imshow(paper)
    axis.set_title(f"demonstration {number}\ninput {'and' if beside else 'above'} output", fontsize=9)


def _draw_answer(axis: Axes, test: VotedInput) -> None:
    if test.answered:
        _show_grid(axis, "\nanswer", test.answer)
    else:
        axis.set_title("\nanswer not known", fontsize=9)


def _draw_attempt(axis: Axes, test: VotedInput, place: int) -> None:
    heading = f"attempt {place + 1}"
    if place >= len(test.candidates):
        axis.set_title(f"{heading}\nnone", fontsize=9)
        return
    one = test.candidates[place]
    votes = f"{one.votes} vote{'s' if one.votes != 1 else ''}, q {one.confidence:.2f}"
    if not test.answered:
        _show_grid(axis, f"{heading}\n{votes}", one.grid)
        return
    verdict = "right" if np.array_equal(one.grid, test.answer) else "wrong"
    differs = f"\n{_difference(one.grid, test.answer)}" if verdict == "wrong" else ""
    solution = test.answer if one.grid.shape == test.answer.shape else None
    _show_grid(axis, f"{heading}: {verdict}\n{votes}{differs}", one.grid, PALETTE[verdict], solution)


def _difference(grid: np.ndarray, answer: np.ndarray) -> str:
    if grid.shape != answer.shape:
        return "{}×{}, not {}×{}".format(*grid.shape, *answer.shape)
    return f"{(grid != answer).sum()} of {answer.size} cells differ"


def _show_grid(
    axis: Axes,
    title: str,
    grid: np.ndarray,
    title_colour: str = PALETTE["ink"],
    solution: np.ndarray | None = None,
) -> None:
    """Show a grid of colours (rows, columns), or only the title if it is empty; mark what differs from a solution."""
    tokens = ARC.on_canvas(grid)
    marked = {} if solution is None else {"solution": ARC.on_canvas(solution)}
    _show_board(axis, title, ARC, tokens, tokens, **marked)
    axis.title.set_color(title_colour)
