"""The page of a report: one HTML file with everything in it, for a screen or a telephone, light or dark."""

import base64
import io
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from errors import UserError
from files import read_json
from puzzles.draw import DARK, PALETTE, board_image
from training.curves import draw_panel, plain, shown_panels
from training.run_facts import Facts, command_of, differences, said
from training.wording import counted, duration, operations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from training.prediction_examples import Example, Seen

INK = "#010203"  # in charts, what takes the page's colour of text
CHART = (4.6, 2.8)  # inches of 72 points: what a telephone shows without making it smaller
BOARDS = 6  # answers of an example at most, between the puzzle and the solution
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
LARGEST_JSON = 64 << 20  # bytes

STYLE = f"""
:root {{ color-scheme: light dark; --ink: {PALETTE["ink"]}; --paper: {PALETTE["paper"]}; --line: #d5dae0;
  --quiet: #5a6672; --panel: #f5f7f9; --right: {PALETTE["right"]}; --wrong: {PALETTE["wrong"]}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: {DARK["ink"]}; --paper: {DARK["paper"]}; --line: #3a4047;
  --quiet: #a3abb3; --panel: #24272b; --right: {DARK["right"]}; --wrong: {DARK["wrong"]}; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 1180px; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }}
h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .4rem; }}
p, figcaption, .quiet {{ color: var(--quiet); }}
p {{ margin: .4rem 0; max-width: 75ch; }}
dl {{ display: grid; grid-template-columns: 7rem 1fr; gap: .35rem 1rem; margin: 0; }}
dt {{ color: var(--quiet); }} dd {{ margin: 0; }}
code, pre {{ font: .85em/1.5 ui-monospace, monospace; }}
pre {{ background: var(--panel); padding: .6rem .8rem; white-space: pre-wrap; border-radius: 6px; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; min-width: 0; }}
.charts svg {{ width: 100%; height: auto; display: block; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
.key {{ display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0 .8rem; list-style: none; }}
.key i {{ display: inline-block; width: 1.4em; height: .25em; margin-right: .4em; vertical-align: middle; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ text-align: right; padding: .3rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th {{ font-weight: 600; color: var(--quiet); }}
summary {{ font-size: 1.05rem; font-weight: 600; padding: .6rem 0; cursor: pointer; }}
details {{ border-top: 1px solid var(--line); }} details[open] {{ padding-bottom: 1.5rem; }}
.boards {{ display: flex; gap: .6rem; overflow-x: auto; padding-bottom: .5rem; }}
.boards figure {{ flex: none; }}
.boards img {{ display: block; border-radius: 4px; background: #fff; padding: 3px; }}
.boards figcaption {{ font-size: .8rem; text-align: center; }}
.right {{ color: var(--right); }} .wrong {{ color: var(--wrong); }}
img.picture {{ max-width: 100%; background: #fff; border-radius: 6px; }}
@media (max-width: 600px) {{ body {{ padding: .8rem; }} dl {{ grid-template-columns: 1fr; gap: 0; }}
  dd {{ margin-bottom: .6rem; }} h1 {{ font-size: 1.3rem; }} }}
"""


@dataclass
class Report:
    """Of one run: what is known, and what its predictions show."""

    facts: Facts
    seen: "Seen | None" = None
    unseen: str = ""  # why there are no examples: HTML
    checkpoint: str = ""  # whose predictions they are


def page(reports: Sequence[Report]) -> bytes:
    """The whole file."""
    names = [report.facts.name for report in reports]
    title = names[0] if len(names) == 1 else f"{counted(len(names), 'run')} compared"
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += single(reports[0]) if len(reports) == 1 else compared(reports)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    return text.encode("utf-8", "replace")  # a name may hold bytes that are none


def single(report: Report) -> Iterator[str]:
    yield facts_list(report.facts)
    if (command := command_of(report.facts)) is not None:
        yield f"<h3>The command</h3><pre>{escape(shlex.join(command))}</pre>"
    yield "<h2>Learning curves</h2>"
    yield from curves([report.facts])
    yield from examined(report)
    yield from found_in(report.facts.folder)


def compared(reports: Sequence[Report]) -> Iterator[str]:
    runs = [report.facts for report in reports]
    yield "<h2>Results</h2><p>After the last evaluation of each run, the best first. The column “best” has the highest "
    yield "of its evaluations: the more there were, the luckier it is.</p>"
    yield results_table(sorted(runs, key=lambda run: run.accuracy_key))
    yield "<h2>What differs</h2>"
    differing = differences(runs)
    if differing:
        yield table(["key", *(run.name for run in runs)], ([key, *values] for key, values in differing.items()))
    else:
        yield "<p>Nothing in their configs.</p>"
    yield "<h2>Learning curves</h2>"
    yield from curves(runs)
    yield "<h2>Each run</h2>"
    for report in reports:
        yield f"<details><summary>{escape(report.facts.name)}</summary>"
        yield facts_list(report.facts)
        yield from examined(report)
        yield from found_in(report.facts.folder)
        yield "</details>"


def facts_list(facts: Facts) -> str:
    rows = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in said(facts))
    return f"<dl>{rows}</dl>"


def results_table(runs: Sequence[Facts]) -> str:
    head = ["run", "all steps", "where it halts", "after steps", "best", "training steps", "parameters", "time", "work"]

    def row(run: Facts) -> list[str]:
        last = run.last
        parameters = run.recorded("parameters")
        return [
            run.name,
            percent(last.get("eval/exact_accuracy")),
            percent(last.get("eval/halt_q/exact_accuracy")),
            f"{last['eval/halt_q/steps']:.1f}" if "eval/halt_q/steps" in last else "–",
            percent(run.best_value),
            f"{run.curves.last_step:,.0f}",
            f"{parameters:,}" if isinstance(parameters, int) else "–",
            duration(run.seconds) if run.seconds else "–",
            operations(run.flops) if run.flops else "–",
        ]

    return table(head, map(row, runs))


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="wide"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def percent(share: float | None) -> str:
    return f"{share:.2%}" if share is not None and isfinite(share) else "–"


# Charts


def curves(runs: Sequence[Facts]) -> Iterator[str]:
    lines = ["● evaluation after all reasoning steps", "□ where the model halts", "faint: training batches"]
    if len(runs) > 1:
        swatches = (f'<i style="background:{COLOURS[n % 10]}"></i>{escape(run.name)}' for n, run in enumerate(runs))
        yield f'<ul class="key">{"".join(f"<li>{swatch}</li>" for swatch in swatches)}</ul>'
    yield f'<ul class="key quiet">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'
    drawn = {str(number): run.curves for number, run in enumerate(runs)}
    charts = []
    for title, panel in shown_panels(drawn.values()).items():
        figure, axis = new_chart()
        draw_panel(axis, title, panel, drawn)
        charts.append((title, figure))
    yield charts_side_by_side(charts)


def new_chart() -> "tuple[Figure, Any]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=CHART, layout="constrained")
    return figure, figure.subplots()


def charts_side_by_side(charts: Iterable[tuple[str, "Figure"]]) -> str:
    parts = (f"<figure><h3>{escape(title)}</h3>{svg(figure, title)}</figure>" for title, figure in charts)
    return f'<div class="charts">{"".join(parts)}</div>'


def svg(figure: "Figure", title: str) -> str:
    """A chart as a part of the page, with real text in the page's colours."""
    from matplotlib import rc_context

    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=INK, labelsize=10)
        for text in (axis.xaxis.label, axis.yaxis.label):
            text.set_color(INK)
            text.set_fontsize(10)
        axis.spines[:].set_color(INK)
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', rf'<svg role="img" aria-label="{escape(title)}" \1', text, count=1)


def reliability_chart(seen: "Seen") -> "Figure":
    """How often the model is right against how sure it is; the area of a dot is the number of puzzles."""
    figure, axis = new_chart()
    puzzles, confidence, right = seen.bins.numpy()
    some = puzzles > 0
    sure, exact = confidence[some] / puzzles[some], right[some] / puzzles[some]
    axis.plot([0, 100], [0, 100], color="#808080", lw=1, ls=":")
    axis.plot(100 * sure, 100 * exact, color=COLOURS[0], lw=1.2)
    axis.scatter(100 * sure, 100 * exact, s=15 + 250 * puzzles[some] / puzzles.max(), color=COLOURS[0], alpha=0.7, lw=0)
    axis.set(xlabel="how sure the model is, %", ylabel="puzzles right, %", xlim=(-3, 103), ylim=(-5, 105))
    plain(axis, "y")
    return figure


def halting_chart(halted: np.ndarray) -> "Figure":
    figure, axis = new_chart()
    steps = np.arange(1, len(halted))
    axis.bar(steps, halted[1:], width=0.85, color=COLOURS[0])
    axis.set(xlabel="reasoning steps taken", ylabel="puzzles", xlim=(0.3, len(halted) - 0.3))
    axis.locator_params(axis="x", integer=True)
    plain(axis, "y")
    return figure


# Predictions


def examined(report: Report) -> Iterator[str]:
    """What the predictions show, or how to make them."""
    yield "<h2>What its answers show</h2>"
    seen = report.seen
    if seen is None:
        yield f"<p>{report.unseen}</p>"
        return
    rule = "where each halts" if seen.manifest.halt == "q" else "after all reasoning steps"
    share = f"{seen.right:,} right: {percent(seen.right / seen.puzzles)}" if seen.puzzles else "no answer is stated"
    yield f"<p>Answers of {escape(report.checkpoint)} to {counted(seen.puzzles, 'puzzle')} of the split "
    yield f"{escape(seen.manifest.split)}, {rule}: {share}.</p>"
    charts = [("Does it know when it is right?", reliability_chart(seen))] if seen.puzzles else []
    if seen.halted is not None:
        charts.append(("When does it halt?", halting_chart(seen.halted)))
    if charts:
        yield charts_side_by_side(charts)
    if seen.puzzles:
        error = f"{100 * seen.calibration_error:.1f} %"
        yield f"<p>Expected calibration error {error}: how far, on average, its confidence "
        yield "is from the share that is right. On the dotted line the two are equal; larger dots are more puzzles.</p>"
    lacking = [
        f"<code>{escape(word)}</code> {what}"
        for word, what, there in (
            ("save_steps=true", "saves the answer of every step, from which the revisions follow", seen.every_step),
            ("halt=q", "lets each puzzle halt, which shows when that is", seen.halted is not None),
        )
        if not there
    ]
    if lacking:
        yield f"<p>More to see with evaluate.py: {'; '.join(lacking)}.</p>"
    if seen.every_step and not seen.most_revised:
        yield "<p>No answer changed after the first step.</p>"
    if seen.most_revised or seen.sure_and_wrong:
        meanings = "what differs from the solution is red"
        if seen.every_step:
            meanings = f"what a step has changed is yellow, or framed where cells have colours of their own; {meanings}"
        yield f"<p>In the boards below, {meanings}.</p>"
    sorts = (("Most revised, right answers first", seen.most_revised), ("Wrong, the surest first", seen.sure_and_wrong))
    for title, examples in sorts:
        if examples:
            yield f"<h3>{title}</h3>"
            for example in examples:
                yield from example_boards(example, seen)


def example_boards(example: "Example", seen: "Seen") -> Iterator[str]:
    """The puzzle, the answers in which something changed, the solution."""
    verdict = '<span class="right">right</span>' if example.right else '<span class="wrong">wrong</span>'
    name = f"{escape(example.name)}: " if example.name else ""
    revised = f", {counted(example.revised, 'cell')} revised" if example.every_step else ""
    kind, puzzle, shown = seen.kind, example.puzzle, shown_steps(example.answers)
    yield f"<p>{name}{verdict} in the end, {example.confidence:.1%} sure{revised}{left_out(example.answers)}</p>"
    boards = [("puzzle", board_image(kind, puzzle, puzzle, pixels=PIXELS))]
    for number in shown:
        before = puzzle if number == 0 else example.answers[number - 1]
        changed = None
        if example.every_step and not (number == 0 and kind.separate_answer):  # that has no board to differ from
            changed = kind.visible(example.answers[number]) != kind.visible(before)
        image = board_image(
            kind, example.answers[number], puzzle, changed=changed, solution=example.solution, pixels=PIXELS
        )
        boards.append((f"step {number + 1}" if example.every_step else "answer", image))
    boards.append(("solution", board_image(kind, example.solution, puzzle, pixels=PIXELS)))
    yield '<div class="boards">'
    for caption, image in boards:
        width = max(60, round(image.width / 2))
        yield f'<figure><img alt="{caption}" width="{width}" src="{png(image)}">'
        yield f"<figcaption>{caption}</figcaption></figure>"
    yield "</div>"


PIXELS = 320  # of a board, shown at half the size: sharp on screens that have two pixels for one


def shown_steps(answers: np.ndarray, most: int = BOARDS) -> list[int]:
    """The first step and, of those in which something changed, the last and at most `most` in all; from 0."""
    changed = [n for n in range(1, len(answers)) if (answers[n] != answers[n - 1]).any()]
    wanted = sorted({0, *changed})
    if len(wanted) > most:
        wanted = [wanted[place] for place in np.unique(np.linspace(0, len(wanted) - 1, most).round().astype(int))]
    return wanted


def left_out(answers: np.ndarray) -> str:
    """What a reader is told of the steps that are not shown."""
    shown, missing = shown_steps(answers), len(answers) - len(shown_steps(answers))
    why = " without a change" if shown == shown_steps(answers, most=len(answers)) else ""
    return f"; {counted(missing, 'step')}{why} left out" if missing else ""


def png(image: Any) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    image.quantize(64).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# What other commands left in the folder


def found_in(folder: Path) -> Iterator[str]:
    """Searches, votes for ARC tasks and figures."""
    for report in sorted(folder.glob("*_search/report.json")):
        with suppress(UserError, KeyError, TypeError, ValueError, ZeroDivisionError):
            yield search_section(report.parent, read_json(report, "", LARGEST_JSON))
    for path in sorted(folder.glob("*.json")):
        with suppress(UserError, KeyError, TypeError, ValueError, AttributeError):
            if path.name not in ("environment.json", "checkpoints.json", "best.json"):
                yield votes_section(path, read_json(path, "", LARGEST_JSON))
    pictures = sorted(picture for picture in folder.glob("*.png") if _is_figure(picture.with_suffix(".json")))
    if pictures:
        yield "<h2>Figures</h2><p>Made with evaluators.figures.</p>"
        for picture in pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            yield f"<h3>{escape(picture.stem)}</h3>"
            yield f'<img class="picture" alt="{escape(picture.stem)}" src="data:image/png;base64,{data}">'


def _is_figure(path: Path) -> bool:
    with suppress(UserError):
        content = read_json(path, "", LARGEST_JSON) if path.is_file() else None
        return isinstance(content, dict) and "figure" in content
    return False


def search_section(folder: Path, found: dict[str, Any]) -> str:
    """What a search reports (evaluators/search.py)."""
    puzzles = found["puzzles"]
    scored = found.get("scored", puzzles)  # which reports of earlier versions do not say
    counts = found["right"] | {"any answer right (looks at the labels)": found["oracle_right"]}
    rows = [[rule, f"{right:,}", percent(right / scored if scored else None)] for rule, right in counts.items()]
    words = f"{found.get('trajectories', '?')} trajectories of each of {counted(puzzles, 'puzzle')}, "
    words += f"{found['mean_steps']:.1f} steps on average; the rule that counts is {found.get('choose', '?')}"
    heading = f"<h2>Search: {escape(folder.name)}</h2><p>{escape(words)}.</p>"
    return heading + table(["rule", "right", "share"], rows)


def votes_section(path: Path, found: dict[str, Any]) -> str:
    """Votes for ARC tasks (evaluators/arc.py, candidates=<file>). Raises `KeyError` for another file."""
    scores = found["scores"]
    rows = [[f"pass@{k}", percent(value), percent(scores["fractional"].get(k))] for k, value in scores["task"].items()]
    return (
        f"<h2>Votes: {escape(path.name)}</h2><p>{counted(scores['num_tasks'], 'ARC task')} of the split "
        f"{escape(str(found.get('split', 'test')))}; pass@2 is the score.</p>"
        + table(["attempts", "tasks solved", "mean share of their inputs"], rows)
    )
