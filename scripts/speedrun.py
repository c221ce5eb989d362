"""How fast the demo's Sudokus are learned: python -m scripts.speedrun [key=value …], docs/speedrun.md has the record.

Trains `+experiment=sudoku_4x4_demo` with several seeds, on the puzzles of `make demo`, and times the whole of each
`pretrain.py`, from its start to its end. What counts are the last weights on 400 held-out puzzles, under both rules of
halting. A run that has ended is not made again, unless its folder is deleted.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from pydantic import Field

from errors import UserError, one_line_errors
from files import read_json, write_atomically
from scripts.demo import PUZZLES
from scripts.study import command
from scripts.study_results import spread
from training.curves import read_lines
from training.options import StrictModel, from_cli
from training.wording import counted

RULES = {"all steps": "eval/exact_accuracy", "where it halts": "eval/halt_q/exact_accuracy"}
MEDIAN, WORST = 0.99, 0.98  # the goal, under both rules


class SpeedrunConfig(StrictModel):
    folder: str = Field(default="checkpoints/speedrun", min_length=1, description="where data and runs go")
    seeds: int = Field(default=5, ge=1, le=1000, description="runs, with seeds 0, 1, …")
    threads: int = Field(default=2, ge=1, le=1024, description="CPU threads of each run (OMP_NUM_THREADS)")
    overrides: list[str] = Field(default=[], description="an attempt: keys of pretrain.py, such as [lr=1e-3,epochs=8]")


def timed_run(config: SpeedrunConfig, seed: int) -> dict:
    """-> the settings, the seconds, and the last accuracy under each rule, of one run; read again where it is known."""
    folder = Path(config.folder).resolve() / f"threads{config.threads}-seed{seed}"
    known, settings = folder / "speedrun.json", {"overrides": config.overrides}
    if known.exists():
        result = read_json(known, "delete its folder to run anew")
        if {key: result[key] for key in settings} != settings:
            raise UserError(f"{folder} holds another attempt, {result['overrides']}; give another folder=")
        return result
    if folder.exists():
        raise UserError(f"{folder} holds a run that has not ended; delete it")
    start = time.monotonic()
    command(
        "pretrain.py", "+experiment=sudoku_4x4_demo", *config.overrides, f"data_path={data_folder(config)}",
        f"checkpoint_path={folder}", f"seed={seed}", log=folder.with_suffix(".log"), threads=config.threads,
    )  # fmt: skip
    seconds = time.monotonic() - start
    last = [line for line in read_lines(folder / "metrics.jsonl") if RULES["all steps"] in line][-1]
    accuracies = {rule: last[metric] for rule, metric in RULES.items()}
    result = settings | {"seconds": seconds, "steps": last["step"], "accuracy": accuracies}
    write_atomically(known, lambda file: file.write(json.dumps(result, indent=1).encode()))
    return result


def data_folder(config: SpeedrunConfig) -> Path:
    return Path(config.folder).resolve() / "data"


def reaches_goal(results: list[dict]) -> bool:
    """Under both rules: the median of the seeds, and the worst of them."""
    of_rule = [[result["accuracy"][rule] for result in results] for rule in RULES]
    return all(statistics.median(values) >= MEDIAN and min(values) >= WORST for values in of_rule)


def speedrun(config: SpeedrunConfig) -> None:
    if not data_folder(config).exists():
        command(*PUZZLES, "--output-dir", str(data_folder(config)), log=data_folder(config).with_suffix(".log"))
    results = []
    for seed in range(config.seeds):
        results.append(timed_run(config, seed))
        percent = ", ".join(f"{rule} {100 * results[-1]['accuracy'][rule]:.2f} %" for rule in RULES)
        print(f"seed {seed}: {results[-1]['seconds']:.1f} s, {results[-1]['steps']} steps; {percent}", flush=True)
    of = f"{counted(len(results), 'seed')}, {counted(config.threads, 'thread')}"
    print(f"\n{of}; median (smallest–largest):")
    print(f"  seconds         {spread([result['seconds'] for result in results])}")
    for rule in RULES:
        print(f"  {rule:14}  {spread([100 * result['accuracy'][rule] for result in results], '{:.2f}')} %")
    goal = f"{MEDIAN:.0%} in the median and {WORST:.0%} in the worst run, under both rules"
    print(f"{'reaches' if reaches_goal(results) else 'misses'} the goal: {goal}")


def main() -> None:
    with one_line_errors():
        speedrun(from_cli(SpeedrunConfig, sys.argv[1:] or ["seeds=5"], __doc__))


if __name__ == "__main__":
    main()
