"""Draws one segment of every model of the family: python -m scripts.draw_recursions out=docs/recursions.png

A box is an update of a state by a stack of blocks, in the order of time; how many there are is read from the
experiments for Sudoku. tests/test_recursions.py holds what is drawn against what the models compute.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from pydantic import Field

from errors import one_line_errors
from evaluators.figure_plots import BLUE, DPI, GREEN, ORANGE
from files import PNG, check_output, write_atomically
from training.command_line import compose_run
from training.config import ArchConfig, from_hydra
from training.options import StrictModel, from_cli

ROOT = Path(__file__).resolve().parents[1]
PALE = 0.25  # opacity of an update without gradient


class Update(NamedTuple):
    """One call of a stack of blocks."""

    state: str  # which is updated
    network: str
    takes_x: bool  # whether the embedded puzzle is added
    gradient: bool


def hrm(arch: ArchConfig) -> list[Update]:
    low, high = (Update("z_L", "f_L", True, False), Update("z_H", "f_H", False, False))
    updates = [low] * arch.L_cycles + [high]
    updates = updates * arch.H_cycles
    return [*updates[:-2], *(update._replace(gradient=True) for update in updates[-2:])]


def trm(arch: ArchConfig) -> list[Update]:
    one_round = [Update("z_L", "f", True, False)] * arch.L_cycles + [Update("z_H", "f", False, False)]
    return one_round * (arch.H_cycles - 1) + [update._replace(gradient=True) for update in one_round]


def urm(arch: ArchConfig) -> list[Update]:
    one_round = [Update("h", "f", True, False)] * arch.L_cycles
    return one_round * (arch.H_cycles - 1) + [update._replace(gradient=True) for update in one_round]


def transformer(arch: ArchConfig) -> list[Update]:
    return [Update("z", "f", True, True)]


# Title -> experiment, and what a segment of it is
MODELS = {
    "HRM": ("sudoku_extreme_1k", hrm),
    "TRM": ("trm_sudoku", trm),
    "EqR": ("eqr_sudoku", trm),
    "URM": ("urm_sudoku", urm),
    "recurrent Transformer": ("transformer_sudoku", transformer),
    "direct prediction": ("direct_sudoku", transformer),
}
COLOURS = {"f_L": BLUE, "f_H": ORANGE, "f": GREEN}
MATH = {"z_L": "$z_L$", "z_H": "$z_H$", "h": "$h$", "z": "$z$", "f_L": "$f_L$", "f_H": "$f_H$", "f": "$f$"}


def arch_of(experiment: str) -> ArchConfig:
    return from_hydra(compose_run(str(ROOT / "config"), [f"+experiment={experiment}"])).arch


def draw() -> Figure:
    segments = {title: (arch_of(name), segment) for title, (name, segment) in MODELS.items()}
    longest = max(len(segment(arch)) for arch, segment in segments.values())
    states = [len({update.state for update in segment(arch)}) for arch, segment in segments.values()]
    figure = Figure(figsize=(11, 0.42 * sum(states) + 0.62 * len(states) + 0.7), layout="constrained")
    axes = figure.subplots(len(segments), 1, height_ratios=[count + 1.1 for count in states])
    for axis, (title, (arch, segment)) in zip(axes, segments.items(), strict=True):
        draw_segment(axis, segment(arch), longest)
        times = "once" if arch.halt_max_steps == 1 else f"up to {arch.halt_max_steps} times"
        notes = {"EqR": "; starts are random, updates damped and noisy"}.get(title, "")
        axis.set_title(f"{title}: {times}{notes}", loc="left", fontsize=10)
    patches = [Patch(fc=COLOURS[name], label=f"{MATH[name]}, with gradient") for name in COLOURS]
    patches += [Patch(fc=("#777777", PALE), label="without gradient")]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9,
        title="box: one pass through a stack of blocks · dot: the embedded puzzle and the other state are added · "
        "arrow: the other state has changed", title_fontsize=9,
    )  # fmt: skip
    return figure


def draw_segment(axis: Axes, updates: list[Update], longest: int) -> None:
    """Time runs to the right; the last of each state goes into the next segment without gradient."""
    rows = sorted({update.state for update in updates}, key=lambda state: state != "z_L")  # the answer's above
    for row, state in enumerate(rows):
        axis.text(-0.9, row, MATH[state], ha="right", va="center", fontsize=11)
        axis.plot([-0.7, len(updates) - 0.3], [row, row], color="#bbbbbb", lw=1, zorder=0)
    for time, update in enumerate(updates):
        row = rows.index(update.state)
        colour = COLOURS[update.network]
        box = FancyBboxPatch(
            (time - 0.33, row - 0.3), 0.66, 0.6, boxstyle="round,pad=0,rounding_size=0.12", lw=1.2, ec=colour,
            fc=colour if update.gradient else (colour, PALE), zorder=2,
        )  # fmt: skip
        axis.add_patch(FancyBboxPatch((time - 0.33, row - 0.3), 0.66, 0.6, boxstyle="round,pad=0", fc="w", lw=0))
        axis.add_patch(box)
        if update.takes_x:
            axis.plot(time, row - 0.47, "o", color="#333333", ms=3, zorder=3)
        if time and updates[time - 1].state != update.state:  # the other state comes in
            start = (time - 1, rows.index(updates[time - 1].state))
            axis.add_patch(
                FancyArrowPatch(start, (time, row), arrowstyle="-|>", mutation_scale=9, color="#555555", shrinkA=11,
                                shrinkB=11, zorder=3)
            )  # fmt: skip
    top = len(rows) - 1
    axis.annotate(
        "answer, Q", (len(updates) - 0.62, top), (len(updates) - 0.1, top), va="center", fontsize=9,
        arrowprops={"arrowstyle": "<|-", "color": "#555555"},
    )  # fmt: skip
    axis.set(xlim=(-1.6, longest + 1.2), ylim=(-0.75, len(rows) - 0.4))
    axis.set_axis_off()


class DrawConfig(StrictModel):
    out: str = Field(description="a .png file")


def main() -> None:
    with one_line_errors():
        config = from_cli(DrawConfig, sys.argv[1:], __doc__)
        out = Path(config.out)
        check_output(out, "out", ".png", PNG)
        figure = draw()
        write_atomically(out, lambda file: figure.savefig(file, dpi=DPI))
        print(out)


if __name__ == "__main__":
    main()
