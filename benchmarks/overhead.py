"""What a training step costs beside the step itself: python -m benchmarks.overhead [--steps N] [--full-batch N]

Times, in one run for each size, the step (forward, backward, optimisers), its metrics (summed over the ranks, fetched,
written to metrics.jsonl, the stop flags agreed upon) and a training state saved to the disk of the temporary folder.
Sizes: the demo's (batch 64), and 27 M parameters on 9×9 Sudokus. Prints the rows of docs/benchmarks.md.

Cost: about 2 minutes on 2 CPU cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

import pretrain
from benchmarks.build import ROOT
from errors import one_line_errors
from training.config import PretrainConfig, from_hydra
from training.data import batches_on, open_datasets
from training.distributed import Ranks, select_device
from training.step import train_step


def config_of(experiment: str, scratch: Path, size: int, batch: int) -> PretrainConfig:
    """The experiment on generated Sudokus of that size, without the compiler."""
    data = scratch / f"sudoku-{size}"
    subprocess.run(
        [sys.executable, "dataset/build_sudoku_dataset.py", "--generate", "--size", str(size), "--num-train", "256",
         "--num-test", "16", "--output-dir", str(data)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    values = dict(data_path=data, checkpoint_path=scratch / experiment, global_batch_size=batch, eval_interval="null")
    overrides = [f"+experiment={experiment}", "compile=off", *(f"{key}={value}" for key, value in values.items())]
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        return from_hydra(compose("cfg_pretrain", overrides=overrides))


def measure(config: PretrainConfig, steps: int) -> dict[str, float]:
    """-> medians in seconds of `step`, `metrics` and `save`, the `state_mb` on disk and the `parameters`."""
    ranks = Ranks.from_environment()
    device = select_device(config.device)
    train_data, _, _ = open_datasets(config, ranks)
    run = pretrain.start(config, ranks, device, train_data)
    times = {"step": [], "metrics": [], "save": []}
    batches = batches_on(device, train_data)
    run.state.head.train()
    for _ in range(steps + 1):
        batch = next(batches)
        start = time.perf_counter()
        sums, lr = train_step(run.state, batch, config)
        if device.type == "cuda":
            torch.cuda.synchronize()
        stepped = time.perf_counter()
        run.unread.add(run.state.step, sums, lr)
        pretrain.look(run)
        times["step"].append(stepped - start)
        times["metrics"].append(time.perf_counter() - stepped)
    for _ in range(3):
        start = time.perf_counter()
        pretrain.save_state(run)
        times["save"].append(time.perf_counter() - start)
    run.bar.close()
    run.metrics_log.close()
    state = Path(config.checkpoint_path) / f"state_{run.state.step}"
    return {name: statistics.median(values[1:]) for name, values in times.items()} | {
        "state_mb": sum(path.stat().st_size for path in state.iterdir()) / 2**20,
        "parameters": sum(p.numel() for p in run.state.head.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="of the demo's size; a tenth of it at 27 M parameters")
    parser.add_argument("--full-batch", type=int, default=8, help="global batch at 27 M parameters")
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    sizes = {
        "sudoku_4x4_demo": (4, 64, args.steps),
        "sudoku_extreme_1k": (9, args.full_batch, max(3, args.steps // 10)),
    }
    print("| size | batch | step | metrics | share of a step | save | in steps | state |\n" + "| --- " * 8 + "|")
    with one_line_errors(), tempfile.TemporaryDirectory() as scratch:
        for experiment, (size, batch, steps) in sizes.items():
            row = measure(config_of(experiment, Path(scratch), size, batch), steps)
            print(
                f"| {row['parameters'] / 1e6:.1f} M parameters | {batch} | {1e3 * row['step']:.1f} ms "
                f"| {1e3 * row['metrics']:.2f} ms | {row['metrics'] / row['step']:.2%} | {1e3 * row['save']:.0f} ms "
                f"| {row['save'] / row['step']:.1f} | {row['state_mb']:.0f} MB |"
            )


if __name__ == "__main__":
    main()
