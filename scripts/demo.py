"""The demo, `make demo`: no network, no GPU; writes to data/ and checkpoints/ in the current folder.

Generates 4×4 Sudokus, trains a small recurrent Transformer on them, evaluates it on puzzles whose solutions it has
never seen, writes a report, and solves the puzzle whose answer the model revised most, step by step until it halts.
Every command it runs is one that a user would type. docs/speedrun.md says how long it takes and what comes out.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script

import numpy as np  # noqa: E402

from errors import UserError, one_line_errors  # noqa: E402
from evaluators.solution import Solution, dataset_at_hand  # noqa: E402
from evaluators.solver import Solver  # noqa: E402
from training.checkpoints import checkpoints_in  # noqa: E402
from training.command_line import compose_run  # noqa: E402
from training.config import from_hydra  # noqa: E402
from training.report import report  # noqa: E402

DATA, RUN = "data/sudoku-4x4", "checkpoints/sudoku-4x4-demo"
PUZZLES = (
    "dataset/build_sudoku_dataset.py", "--generate", "--size", "4", "--num-train", "8192", "--num-test", "400",
)  # fmt: skip


def command(*args: str) -> None:
    print(f"\n$ python {shlex.join(args)}", flush=True)
    environment = {"WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"} | os.environ
    done = subprocess.run([sys.executable, ROOT / args[0], *args[1:]], env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def most_revised(checkpoint: Path) -> str:
    """The held-out puzzle, as a person would type it, in whose right answer most cells were changed after step 1."""
    tokens = np.load(f"{DATA}/test/all__inputs.npy")
    _, kind = dataset_at_hand(Path(DATA))
    puzzles = [kind.plain(row) for row in tokens]
    found = Solver.load(checkpoint, device="cpu").solve(puzzles, halt="q")

    def revisions(solution: Solution) -> tuple[bool, int]:
        return bool(solution.valid), sum(int(answer.changed.sum()) for answer in solution.found[1:])

    return puzzles[max(range(len(puzzles)), key=lambda number: revisions(found[number]))]


def main(*overrides: str) -> None:
    """`overrides` go to pretrain.py."""
    if {"-h", "--help"} & set(overrides):
        print(f"{__doc__.strip()}\n\nOptions key=value go to pretrain.py, whose --help lists them.")
        return
    words = ("+experiment=sudoku_4x4_demo", *overrides)
    config = from_hydra(compose_run(str(ROOT / "config"), words))  # what is refused must not cost the last run
    if config.checkpoint_path != RUN:
        raise UserError(f"the demo's run is {RUN}; leave checkpoint_path out")
    shutil.rmtree(RUN, ignore_errors=True)  # a demo starts afresh, and deletes only its own folder
    command(*PUZZLES, "--output-dir", DATA)
    start = time.monotonic()
    command("pretrain.py", *words)
    minutes = (time.monotonic() - start) / 60
    # The last one: best.json was chosen by looking at these very puzzles.
    checkpoints = checkpoints_in(Path(RUN)) if Path(RUN).is_dir() else []
    if not checkpoints:
        raise UserError(f"pretrain.py left no checkpoint in {RUN}; let it get to the first evaluation")
    checkpoint = checkpoints[-1]
    command("evaluate.py", f"checkpoint={checkpoint}", "halt=q", "save_steps=true")

    print(f"\n$ python -m training.report {RUN}")
    report([Path(RUN)])
    print("\nThe held-out puzzle whose answer it revised most:")
    command(
        "solve.py", f"checkpoint={checkpoint}", f"puzzle={most_revised(checkpoint)}", "halt=q", "--gif",
        f"{RUN}/solved.gif",
    )  # fmt: skip
    print(f"\nTrained in {minutes:.1f} min. Open {RUN}/report.html; type a puzzle of your own into the last command.")


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
