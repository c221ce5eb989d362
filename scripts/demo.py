"""The demo, `make demo`: no network, no GPU; writes to data/ and checkpoints/ in the current folder.

Generates 4×4 Sudokus, trains a small HRM on them, evaluates it on puzzles whose solutions it has never seen, draws the
learning curve, and shows what the model answers after each reasoning step. Every command it runs is one that a user
would type. README.md says what it costs and what comes out.
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

import torch  # noqa: E402

from errors import one_line_errors  # noqa: E402
from evaluators.boards import side_by_side, sudoku_lines  # noqa: E402
from evaluators.steps import reasoning_steps  # noqa: E402
from puzzle_dataset import PuzzleDataset, PuzzleDatasetConfig  # noqa: E402
from training.config import load_config  # noqa: E402
from training.report import report  # noqa: E402
from training.weights import load_model  # noqa: E402

DATA, RUN = "data/sudoku-4x4", "checkpoints/sudoku-4x4-demo"
SHOWN = 3  # puzzles


def command(*args: str) -> None:
    print(f"\n$ python {shlex.join(args)}", flush=True)
    environment = {"WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"} | os.environ
    done = subprocess.run([sys.executable, ROOT / args[0], *args[1:]], env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def show_steps(checkpoint: Path) -> None:
    """Print the answers to the first few held-out puzzles, step by step."""
    config = PuzzleDatasetConfig(
        seed=0, dataset_path=DATA, global_batch_size=SHOWN, test_set_mode=True, epochs_per_iter=1,
        rank=0, num_replicas=1, max_examples=SHOWN,
    )  # fmt: skip
    dataset = PuzzleDataset(config, "test")
    run = load_config(f"{RUN}/all_config.yaml")
    head = load_model(checkpoint, run, dataset.metadata, batch_size=SHOWN, device=torch.device("cpu"))
    _, batch, _ = next(iter(dataset))
    steps = reasoning_steps(head, batch)
    for i in range(SHOWN):
        columns = [("puzzle", sudoku_lines(batch["inputs"][i].numpy()))]
        before = batch["inputs"][i].numpy()
        for n, step in enumerate(steps, start=1):
            answer = step.answer[i].numpy()
            columns.append((f"step {n}", [*sudoku_lines(answer, answer != before), f"sure: {step.confidence[i]:.0%}"]))
            before = answer
        right = torch.equal(steps[-1].answer[i], batch["labels"][i].to(steps[-1].answer.dtype))
        print(f"\nheld-out puzzle {i + 1}: {'solved' if right else 'not solved'}")
        print(side_by_side(columns))


def main(*overrides: str) -> None:
    """`overrides` go to pretrain.py."""
    shutil.rmtree(RUN, ignore_errors=True)  # a demo starts afresh; its own folder only
    command(
        "dataset/build_sudoku_dataset.py", "--generate", "--size", "4", "--num-train", "8192", "--num-test", "400",
        "--output-dir", DATA,
    )  # fmt: skip
    start = time.monotonic()
    command("pretrain.py", "+experiment=sudoku_4x4_demo", *overrides)
    minutes = (time.monotonic() - start) / 60
    # The last one: best.json was chosen by looking at these very puzzles.
    steps = [int(path.name[5:]) for path in Path(RUN).glob("step_*") if path.name[5:].isdecimal()]
    checkpoint = Path(RUN) / f"step_{max(steps)}"
    command("evaluate.py", f"checkpoint={checkpoint}", "save_outputs=[]")

    print(f"\n$ python -m training.report {RUN}")
    report([Path(RUN)])
    print("\nWhat the model answers after each reasoning step (* changed since the one before):")
    show_steps(checkpoint)
    print(f"\nTrained in {minutes:.1f} min. Learning curves: {RUN}/learning_curves.png")


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
