"""Draws the reports of evaluators/figures.py. Colours are those of Okabe and Ito (2008), safe for the colour-blind."""

from collections.abc import Sequence
from math import isqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evaluators.arc_figures import draw_grid
from puzzles.sudoku import BOXES

DPI = 150
BLUE, ORANGE, GREEN, PURPLE, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
INK, THIN, CLUE, WRONG = "#1a1a1a", "#b0b0b0", "#ececec", "#f8c9a0"
WALL, PATH = "#404040", "#56b4e9"
MAX_COLUMNS = 8  # of steps in one figure
STATES = {"z_H": ("$z_H$", VERMILLION, "o"), "z_L": ("$z_L$", BLUE, "s")}
MODELS = {"trained": ("trained", "-"), "untrained": ("untrained, same shape", "--")}
RULES = {
    "halt_max": ("every puzzle takes all steps", BLUE, "-", "o"),
    "halt_q": ("stops when Q(halt) > Q(continue)", ORANGE, "--", "s"),
}


def draw_steps(report: dict) -> Figure:
    """A row a puzzle: the puzzle, its answer after (at most 8 of) the steps, its solution."""
    shown = spread(report["max_steps"], MAX_COLUMNS)
    puzzles, columns = report["puzzles"], len(shown) + 2
    draw = {"sudoku": _draw_sudoku, "maze": _draw_maze, "arc": _draw_arc}[report["kind"]]
    figure = Figure(figsize=(1.6 * columns, 1.95 * len(puzzles) + 0.45), layout="constrained")
    axes = figure.subplots(len(puzzles), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, puzzle in zip(axes, puzzles, strict=True):
        board, solution = puzzle["puzzle"], puzzle["solution"]
        draw(row[0], board, board, None, board)
        row[0].set_title("puzzle", fontsize=9)
        for axis, number in zip(row[1:], shown, strict=False):
            step = puzzle["steps"][number - 1]
            before = board if number == 1 else puzzle["steps"][number - 2]["answer"]
            draw(axis, board, step["answer"], solution, before)
            solved = step["equal_cells"] == puzzle["cells"]
            weight = "bold" if solved else "normal"
            axis.set_title(f"step {number}{' ✓' if solved else ''}", fontsize=9, fontweight=weight)
            cells = f"{step['equal_cells']}/{puzzle['cells']} cells"
            axis.set_xlabel(f"{cells} · {step['confidence']:.0%} sure", fontsize=7.5)
        draw(row[-1], board, solution, solution, solution)
        row[-1].set_title("solution", fontsize=9)
    if _LEGENDS[report["kind"]]:
        figure.legend(handles=_LEGENDS[report["kind"]], loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def spread(steps: int, most: int) -> list[int]:
    """Up to `most` of the steps 1…`steps`, the first and the last among them, denser at the beginning."""
    if steps <= most:
        return list(range(1, steps + 1))
    shown = np.unique(np.round(np.geomspace(1, steps, most)).astype(int))
    return shown.tolist()


_LEGENDS = {
    "sudoku": [
        Patch(facecolor=CLUE, edgecolor=THIN, label="clue"),
        Line2D([], [], ls="", marker="$4$", ms=8, color=BLUE, label="changed in this step"),
        Patch(facecolor=WRONG, edgecolor=THIN, label="differs from the solution"),
    ],
    "maze": [
        Patch(facecolor=PATH, label="path"),
        Patch(facecolor=ORANGE, label="path where the solution has none"),
        Patch(facecolor=PURPLE, label="missing path"),
        Patch(facecolor=VERMILLION, label="any other mistake"),
    ],
    "arc": [],
}


def _draw_sudoku(axis: Axes, puzzle: str, board: str, solution: str | None, before: str) -> None:
    size = isqrt(len(board))
    tints = np.ones((size * size, 3))
    for cell, digit in enumerate(board):
        wrong = solution is not None and digit != solution[cell]
        if wrong or puzzle[cell] != ".":
            tints[cell] = to_rgb(WRONG if wrong else CLUE)
        if digit != ".":
            clue, row, column = puzzle[cell] == digit, *divmod(cell, size)
            axis.text(
                column, row, digit,
                ha="center", va="center_baseline", fontsize=62 / size, fontweight="bold" if clue else "normal",
                color=BLUE if digit != before[cell] else INK, in_layout=False,
            )  # fmt: skip
    axis.imshow(tints.reshape(size, size, 3), interpolation="nearest")
    for lines, box in ((axis.axhline, BOXES[size][0]), (axis.axvline, BOXES[size][1])):
        for at in range(1, size):
            lines(at - 0.5, color=INK if at % box == 0 else THIN, lw=1.2 if at % box == 0 else 0.5)
    axis.spines[:].set(color=INK, linewidth=1.2)


def _draw_maze(axis: Axes, puzzle: list[str], board: list[str], solution: list[str] | None, before: list[str]) -> None:
    cells, given = (np.array([list(line) for line in lines]) for lines in (board, puzzle))
    wanted = cells if solution is None else np.array([list(line) for line in solution])
    colours = np.ones((*cells.shape, 3))
    for mask, colour in (
        (cells == "#", WALL),
        (cells == "o", PATH),
        ((cells == "o") & (wanted != "o") & (given == " "), ORANGE),
        ((cells == " ") & (wanted == "o"), PURPLE),
        ((cells != wanted) & ~((given == " ") & ((cells == "o") | (cells == " "))), VERMILLION),
    ):
        colours[mask] = to_rgb(colour)
    axis.imshow(colours, interpolation="nearest")
    for letter, colour in (("S", GREEN), ("G", BLUE)):
        for row, column in np.argwhere(cells == letter)[:8]:  # an untrained model may answer S everywhere
            box = dict(boxstyle="circle,pad=0.15", facecolor=colour, edgecolor="white", linewidth=0.6)
            style = dict(ha="center", va="center", fontsize=max(5.5, 50 / len(cells)), color="white", in_layout=False)
            axis.text(column, row, letter, fontweight="bold", bbox=box, **style)


def _draw_arc(axis: Axes, puzzle: list, board: list, solution: list | None, before: list) -> None:
    axis.set_box_aspect(None if board else 1)
    draw_grid(axis, np.array(board, dtype=int).reshape(len(board), -1 if board else 0), "")


def draw_participation(report: dict) -> Figure:
    """PR against the number of puzzles, and its last values."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    curve, last = figure.subplots(1, 2, width_ratios=(1.7, 1))
    for model, (model_name, line) in MODELS.items():
        for state, (name, colour, marker) in STATES.items():
            filled = colour if model == "trained" else "white"
            style = dict(color=colour, ls=line, marker=marker, mfc=filled, ms=5, lw=1.6)
            curve.plot(report["puzzles"], report[model][state], label=f"{name}, {model_name}", **style)
    _limits_axis(curve, report["puzzles"])
    curve.set(xlabel="number of puzzles", ylabel=f"participation ratio (at most {report['hidden_size']})")
    curve.set_ylim(bottom=0)
    curve.legend(fontsize=8, frameon=False)

    for i, (state, (name, colour, _)) in enumerate(STATES.items()):
        values = [report[model][state][-1] for model in MODELS]
        bars = last.bar(np.arange(2) + 0.38 * (i - 0.5), values, 0.36, color=colour, label=name)
        bars[1].set(facecolor="white", edgecolor=colour, linewidth=1.6)
        last.bar_label(bars, fmt="%.1f", fontsize=8)
    last.set(xticks=(0, 1), xticklabels=MODELS, ylim=(0, 1.15 * last.get_ylim()[1]))
    last.set_title(f"after {report['puzzles'][-1]} puzzles", fontsize=9)
    last.legend(fontsize=8, frameon=False, ncols=2)
    _plain_axes(figure)
    return figure


def draw_scaling(report: dict) -> Figure:
    """Exact accuracy, with its 95 % interval, and mean steps against the allowed steps."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    accuracy, steps = figure.subplots(1, 2)
    limits = np.array(report["limits"])
    for rule, (name, colour, line, marker) in RULES.items():
        style = dict(color=colour, ls=line, marker=marker, ms=5, lw=1.6, label=name)
        exact = np.array(report[rule]["exact_accuracy"])
        accuracy.plot(limits, 100 * exact, **style)
        low, high = wilson_interval(exact, report["examples"])
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


def wilson_interval(share: np.ndarray, count: int, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % confidence interval of a share of `count` (Wilson 1927)."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half


def _limits_axis(axis: Axes, ticks: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()


def _plain_axes(figure: Figure) -> None:
    for axis in figure.axes:
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
