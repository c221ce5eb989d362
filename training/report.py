"""What became of one or more runs: python -m training.report <run>… [out=<file or folder>]

Reads the run folders, writes a page that needs nothing else (report.html) and its learning curves as a picture, and
prints a table of the evaluations. The page says what was trained on what, how far and at what cost; it has curves under
both rules of halting and, from the predictions that evaluate.py left, reliability, halting and examples.

    one run        <run>/report.html and <run>/learning_curves.png
    several runs   <first run>/comparison.html and comparison.png, so that no run loses its own
    out=x.html     there, with the picture beside it, x.png
    out=<folder>   into that folder, under the same names
    out=x.png      the picture alone; also .pdf and .svg
"""

import shlex
import sys
import warnings
from html import escape
from math import isfinite
from pathlib import Path

from pydantic import Field

from errors import UserError, one_line_errors, warn
from files import PNG, check_output, check_writable, read_json, write_atomically
from training.curves import COLUMNS, Run, check_history, draw, metrics_file, read_run
from training.options import StrictModel, from_cli

FORMATS = {"png": PNG, "pdf": b"%PDF-", "svg": b"<?xml"}  # what a picture begins with
PAGE_BEGINS = b"<!doctype html>"


def table(name: str, evaluations: list[dict[str, float]]) -> str:
    """The evaluations of one run, with a bar for the exact accuracy."""
    rows = [
        name,
        f"{'':>26}  {'where it halts':>14}  after all steps",
        f"{'step':>8}  {'loss':>7}  {'cells':>6}  {'steps':>5}  {'exact':>7}  exact accuracy",
    ]
    for line in evaluations:
        loss, cells, steps, halted, exact = (
            form.format(line[key]) if key in line else "-" for key, form in COLUMNS.items()
        )
        share = line["eval/exact_accuracy"]
        bar = "█" * round(30 * min(max(share, 0), 1)) if isfinite(share) else ""
        rows.append(f"{line['step']:>8.0f}  {loss:>7}  {cells:>6}  {steps:>5}  {halted:>7}  {exact:>6} {bar}".rstrip())
    return "\n".join(rows if evaluations else [rows[0], "    no evaluation yet"])


def distinct_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or the whole path if two end alike."""
    names = [folder.name or folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def places(folders: list[Path], out: Path | None) -> tuple[Path | None, Path]:
    """-> the page, None where only a picture is asked for, and the picture.

    Raises `UserError`, before the work, if they cannot be written or would replace what is no page or picture.
    """
    names = ("report.html", "learning_curves.png") if len(folders) == 1 else ("comparison.html", "comparison.png")
    folder = folders[0] if out is None else out if out.is_dir() else None
    if folder is not None:
        page, picture = folder / names[0], folder / names[1]
    elif out.suffix.lower() == ".html":
        page, picture = out, out.with_suffix(".png")
    elif out.suffix[1:].lower() in FORMATS:
        page, picture = None, out
    else:
        raise UserError(f"out={out} must be a folder, or end in .html, {', '.join(f'.{name}' for name in FORMATS)}")
    check_writable(picture.parent, str(page or picture), "set out=<file or folder>")
    for path in filter(None, (page, picture)):
        if path.is_dir():
            raise UserError(f"{path} is a folder, where a file would go; set out=<file or folder>")
    if page is not None:
        check_output(page, "out", ".html", PAGE_BEGINS)
    kind = picture.suffix[1:].lower()
    check_output(picture, "out", f".{kind}", FORMATS[kind])
    return page, picture


def report(folders: list[Path], out: Path | None = None) -> Path:
    """Draw, write and print; -> the page, or the picture where only that is asked for."""
    names = distinct_names(folders)
    if len(set(names)) < len(names):
        raise UserError(f"a run is named twice among {', '.join(names)}; name each once")
    for folder in folders:
        metrics_file(folder)
    page, picture = places(folders, out)  # before the files are read: they may have a million lines
    runs = {name: read_run(folder) for name, folder in zip(names, folders, strict=True)}
    for folder, run in zip(folders, runs.values(), strict=True):
        try:
            check_history(folder, "restore it if you did not mean to change it")
        except UserError as changed:
            warn(str(changed))
        if run.torn:
            warn(f"the last line of {folder / 'metrics.jsonl'} is not whole: left out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font lacks a character of a name
        figure, content = draw(runs), page_of(folders, runs) if page is not None else b""
        write_atomically(picture, lambda file: figure.savefig(file, format=picture.suffix[1:].lower(), dpi=120))
        if page is not None:
            write_atomically(page, lambda file: file.write(content))
    for name, run in runs.items():
        print(table(name, run.evaluations))
    print(f"learning curves: {picture}")
    if page is not None:
        print(f"report: {page}")
    return page or picture


def page_of(folders: list[Path], runs: dict[str, Run]) -> bytes:
    from training.report_page import Report, page
    from training.run_facts import count_anew, read_facts

    reports = []
    for folder, (name, run) in zip(folders, runs.items(), strict=True):
        facts = read_facts(name, folder, run)
        count_anew(facts)
        reports.append(Report(facts, *examples_of(folder, facts.config)))
    return page(reports)


def examples_of(folder: Path, config: dict) -> tuple:
    """-> what the newest saved predictions show, or None and why in HTML, and the name of their checkpoint."""
    saved = sorted(folder.glob("*_preds/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not saved:
        return None, how_to_predict(folder), ""
    from training.prediction_examples import look_at

    prefix = saved[-1].parent.with_name(saved[-1].parent.name.removesuffix("_preds"))
    try:
        recorded = read_json(saved[-1], "run evaluate.py again").get("dataset", "")
        here = Path(str(recorded)) if recorded and Path(str(recorded)).is_dir() else Path(str(config.get("data_path")))
        return look_at(prefix, here), "", prefix.name
    except (UserError, AttributeError) as error:
        return None, f"The predictions cannot be shown: {escape(str(error))}", ""


def how_to_predict(folder: Path) -> str:
    """One line with the command that makes predictions, which takes the best checkpoint or the last."""
    command = f"python evaluate.py checkpoint={shlex.quote(str(folder))} halt=q save_steps=true"
    return f"Reliability, halting and examples appear here after <code>{escape(command)}</code>."


class ReportConfig(StrictModel):
    runs: list[str] = Field(min_length=1, description="run folders")
    out: str | None = Field(
        default=None,
        description="a folder, a .html file, or a .png, .pdf or .svg file for the picture alone; see above",
    )


def main() -> None:
    with one_line_errors():
        config = from_cli(ReportConfig, sys.argv[1:], __doc__, positional=("runs",))
        report([Path(run) for run in config.runs], None if config.out is None else Path(config.out))


if __name__ == "__main__":
    main()
