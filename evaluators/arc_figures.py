"""ARC test inputs as a picture: input, right answer and the best attempts side by side, one test input a row."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from evaluators.arc_voting import Tasks, VotedInput
from puzzles.arc import NUM_COLOURS
from puzzles.draw import PALETTE

COLOURS = ListedColormap([PALETTE[f"arc_{colour}"] for colour in range(NUM_COLOURS)])
PANEL_INCHES = 2.4


def draw_tasks(tasks: Tasks, attempts: int = 2) -> Figure:
    """A row for each test input of the tasks: the input, the right answer, and the `attempts` best candidates."""
    tests = [(task, number, test) for task, inputs in tasks.items() for number, test in enumerate(inputs, 1)]
    columns = 2 + attempts
    figure = Figure(figsize=(PANEL_INCHES * columns, (PANEL_INCHES + 0.5) * max(1, len(tests))), dpi=80)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    rows = figure.subplots(max(1, len(tests)), columns, squeeze=False)
    for axis in rows.flat:
        axis.set_axis_off()
    if not tests:
        rows[0, 0].text(0, 0.5, "none", fontsize=11)
    for axes, (task, number, test) in zip(rows, tests, strict=False):
        draw_grid(axes[0], test.input, f"{task}\ninput {number if len(tasks[task]) > 1 else ''}")
        draw_grid(axes[1], test.answer, "\nanswer")
        for place in range(attempts):
            _draw_attempt(axes[2 + place], test, place)
    return figure


def _draw_attempt(axis: Axes, test: VotedInput, place: int) -> None:
    heading = f"attempt {place + 1}"
    if place >= len(test.candidates):
        axis.set_title(f"{heading}\nnone", fontsize=9)
        return
    one = test.candidates[place]
    votes = f"{one.votes} vote{'s' if one.votes != 1 else ''}, q {one.confidence:.2f}"
    verdict = "right" if np.array_equal(one.grid, test.answer) else "wrong"
    draw_grid(axis, one.grid, f"{heading}: {verdict}\n{votes}", PALETTE[verdict])


def draw_grid(axis: Axes, grid: np.ndarray, title: str, title_colour: str = "black") -> None:
    """One grid (rows, columns) of colours, with lines between its cells; nothing but the title for an empty one."""
    axis.set_title(title, fontsize=9, color=title_colour)
    if not grid.size:
        axis.text(0.5, 0.5, "empty grid", ha="center", va="center", fontsize=9, transform=axis.transAxes)
        return
    axis.set_axis_on()
    axis.imshow(grid, cmap=COLOURS, vmin=0, vmax=NUM_COLOURS - 1, interpolation="nearest")
    rows, columns = grid.shape
    axis.set_xticks(np.arange(columns + 1) - 0.5)
    axis.set_yticks(np.arange(rows + 1) - 0.5)
    axis.grid(color=PALETTE["line"], linewidth=0.5)
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    axis.spines[:].set_color(PALETTE["line"])
