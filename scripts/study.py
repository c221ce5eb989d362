"""The study of docs/results.md, on CPU cores: python -m scripts.study folder=study [key=value …]

Trains the models of the family, small and of equal size, on 4×4 and 6×6 Sudokus and on 9×9 mazes, there with rounds as
published and with a single one, with a fixed budget of minutes and one of counted operations; then HRM with fewer
segments, without a target of Q(continue), and with rotary positions.
Builds the datasets, measures how long a step of each takes, makes the runs (each a normal run folder, with one thread)
and writes tables and curves. A study that was stopped goes on when the same command is given again; `results=true`
only writes what there is.

The two budgets are read off the same run: its learning rate is constant after the warm-up, so that it does not know
when it will end. A budget of minutes stands for a number of steps, by the time of one step that was measured when
nothing else ran (`speed.json`, kept); neither evaluations nor other programs count.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from errors import UserError, one_line_errors
from files import read_json, write_atomically
from training.options import StrictModel, from_cli

ROOT = Path(__file__).resolve().parents[1]
GROUPS = 2048  # puzzles before augmentation
STEPS_AN_EPOCH = GROUPS // 32  # of the batch size in config/experiment/study.yaml
PUZZLES = 400  # held out


class Task(NamedTuple):
    build: tuple[str, ...]  # builder, and its options
    minutes: float
    teraflops: float
    settings: tuple[str, ...] = ()  # of all its runs, before those of the model
    one_round: bool = False  # a segment is one round with L = 2, in those models that have rounds


SUDOKU, MAZE = "dataset/build_sudoku_dataset.py", "dataset/build_maze_dataset.py"
# First looks, one seed each: as on Sudokus, HRM had no maze right after 2,048 steps; with these 2.8 %. Short paths too,
# since models learn these first: a recurrent Transformer had 13 % after 768 steps, with learned positions none.
MAZE_SETTINGS = ("lr=2e-3", "arch.pos_encodings=rope")
TASKS = {
    "sudoku-4x4": Task((SUDOKU, "--size", "4", "--num-aug", "7"), 1, 3),
    "sudoku-6x6": Task((SUDOKU, "--size", "6", "--extra-clues", "24", "--num-aug", "7"), 2, 6),
    "maze-9x9": Task((MAZE, "--size", "9", "--one-path", "--min-path-length", "1", "--aug"), 5, 15, MAZE_SETTINGS),
    # With published rounds no path of more than four cells was found there: longer ones, shorter segments, more time,
    # and less weight decay (first looks, TRM mlp, seed 0, 2,048 steps: with 1.0 13 %, with 0.1 33 %)
    "maze-9x9-one-round": Task(
        (MAZE, "--size", "9", "--one-path", "--min-path-length", "3", "--aug"),
        6,
        12,
        (*MAZE_SETTINGS, "weight_decay=0.1"),
        one_round=True,
    ),
}
HRM = ("arch=hrm_v1", "arch.H_layers=1", "arch.L_layers=1")
TRM = ("arch=trm", "arch.puzzle_emb_len=0")
TRANSFORMER = ("arch=transformer", "arch.num_layers=2")
# Overrides of those that have rounds, by architecture
ONE_ROUND = dict.fromkeys(("arch=hrm_v1", "arch=trm", "arch=urm"), ("arch.H_cycles=1", "arch.L_cycles=2"))
# Each has two blocks of width 64
ARCHITECTURES = {
    "HRM": HRM,
    "TRM, attention": TRM,
    "TRM, mlp": (*TRM, "arch.mlp_t=true", "arch.pos_encodings=none"),
    "URM": ("arch=urm", "arch.num_layers=2"),
    "recurrent Transformer": TRANSFORMER,
    "direct prediction": (*TRANSFORMER, "arch.halt_max_steps=1"),
}
# HRM once more, with as many steps as in the comparison, whose own run has 8 segments, a Q target, learned positions
VARIANTS = {
    **{f"HRM, {n} segment{'s' * (n > 1)}": (*HRM, f"arch.halt_max_steps={n}") for n in (1, 2, 4)},
    "HRM, no Q target": (*HRM, "arch.q_target=off"),
    "HRM, rotary positions": (*HRM, "arch.pos_encodings=rope"),
}
VARIANT_TASKS = ("sudoku-6x6", "sudoku-4x4")
MOST_SEGMENTS = 64  # at inference
SPEEDS = "speed.json"
BUDGET, MOST_BUDGET = "budget.json", 100


def short_name(model: str) -> str:
    """Of folders and commands."""
    return model.lower().replace(", ", "-").replace(" ", "-")


# Those of a command, each once: two workers must not train in one folder, nor may a seed count twice
Once = AfterValidator(lambda names: list(dict.fromkeys(names)))
Tasks = Annotated[list[Literal[tuple(TASKS)]], Once]
Models = Annotated[list[Literal[tuple(map(short_name, ARCHITECTURES | VARIANTS))]], Once]


class StudyConfig(StrictModel):
    folder: str = Field(min_length=1, description="where data, runs and results go")
    seeds: int = Field(default=3, ge=1, description="runs of everything, with seeds 0, 1, …")
    workers: int = Field(default=1, ge=1, description="runs at a time, each on one core")
    parts: list[Literal["family", "variants"]] = Field(
        default=["family", "variants"], min_length=1, description="the comparison; variants of HRM"
    )
    tasks: Tasks = Field(default=list(TASKS), min_length=1, description="kinds of puzzles")
    models: Models | None = Field(
        default=None, min_length=1, description="only these of the parts, such as trm-mlp; null: all"
    )
    budget: float | None = Field(
        default=None, gt=0, le=MOST_BUDGET, description="factor on all budgets; null: the study's own, 1 for a new one"
    )
    results: bool = Field(default=False, description="make no run, write the results of those that there are")


class StudyRun(NamedTuple):
    """One training run."""

    task: str
    model: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}/{short_name(self.model)}-seed{self.seed}"


def planned_runs(config: StudyConfig) -> Iterator[StudyRun]:
    """Seed by seed, so that a study that is not over shows all models."""
    for seed in range(config.seeds):
        for task in config.tasks:
            models = ARCHITECTURES if "family" in config.parts else {}
            if "variants" in config.parts and task in VARIANT_TASKS:
                models = {"HRM": HRM} | models | VARIANTS
            for model, overrides in models.items():
                if config.models is None or short_name(model) in config.models:
                    yield StudyRun(task, model, overrides, seed)


def command(*args: str, log: Path | None = None, threads: int = 1) -> None:
    """Run a command of this repository; its output goes to a file, or is shown."""
    environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": str(threads)}
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") if log else nullcontext() as file:
        print(f"$ python {shlex.join(args)}", file=file, flush=True)
        done = subprocess.run([sys.executable, *args], cwd=ROOT, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise UserError(f"this failed: python {shlex.join(args)}" + (f"; see {log}" if log else ""))


def build_datasets(config: StudyConfig) -> None:
    for task in config.tasks:
        folder = data_folder(config, task)
        if not (folder / "identifiers.json").exists():
            sizes = ("--generate", "--num-train", str(GROUPS), "--num-test", str(PUZZLES))
            builder, *options = TASKS[task].build
            command(builder, *sizes, *options, "--output-dir", str(folder))


def data_folder(config: StudyConfig, task: str) -> Path:
    return Path(config.folder).resolve() / "data" / task


def run_folder(config: StudyConfig, run: StudyRun) -> Path:
    return Path(config.folder).resolve() / "runs" / run.name


def with_its_budget(config: StudyConfig, write: bool) -> StudyConfig:
    """A study has one budget for good: runs of another would have other lengths than its tables.

    A folder of an earlier version does not say which. It goes on as it did, and keeps the one that it is given.
    """
    path = Path(config.folder) / BUDGET
    its = config.budget or 1.0
    if path.exists():
        remedy = "delete it, and give the budget that the study had"
        saved = read_json(path, remedy)
        its = saved.get("budget") if isinstance(saved, dict) else None
        if not (isinstance(its, int | float) and not isinstance(its, bool) and 0 < its <= MOST_BUDGET):
            raise UserError(f"{path} holds no budget; {remedy}")
    if config.budget not in (None, its):
        raise UserError(f"folder={config.folder} is a study with budget={its:g}; leave it out, or give another folder")
    known = config.budget is not None or not (path.parent / "runs").exists()
    if write and known and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(json.dumps({"budget": its}).encode()))
    return config.model_copy(update={"budget": its})


# How long a step takes


def speeds(config: StudyConfig) -> dict[str, dict[str, dict[str, float]]]:
    """Task -> architecture -> seconds of one core and counted operations of a training step, and the parameters.

    Measured once, in turns, so that what else the machine does meets all alike.
    """
    known = known_speeds(Path(config.folder))
    for task in config.tasks:
        timed = known.setdefault(task, {})
        new = {model: overrides for model, overrides in ARCHITECTURES.items() if model not in timed}
        if new:
            print(f"{task}: timing a step of {len(new)} models, once; nothing else should run", flush=True)
            timed |= measure_speeds(config, task, new)
            path = Path(config.folder) / SPEEDS
            write_atomically(path, lambda file: file.write(json.dumps(known, indent=1).encode()))
    return known


def known_speeds(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Those of the tasks that a study has; none where there is no study."""
    return read_json(folder / SPEEDS, "delete it to measure anew") if (folder / SPEEDS).exists() else {}


def measure_speeds(config: StudyConfig, task: str, models: dict[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
    import torch

    from puzzle_dataset import PuzzleDataset
    from training.command_line import compose_run
    from training.config import from_hydra
    from training.distributed import Ranks
    from training.flops import count_parameters, flops_per_step
    from training.step import create_state, train_step

    torch.set_num_threads(1)
    states, found = {}, {}
    for model, overrides in models.items():
        data = data_folder(config, task)
        words = ["+experiment=study", f"data_path={data}", *settings(task, overrides)]
        run = from_hydra(compose_run(str(ROOT / "config"), words))
        dataset = PuzzleDataset.alone(data, "train", run.global_batch_size, epochs_per_iter=2)
        state = create_state(run, dataset.metadata, Ranks(0, 1, 0), torch.device("cpu"))
        state.head.train()
        states[model] = (state, [batch for _, batch, _ in dataset], run)
        found[model] = {
            "parameters": count_parameters(state.head), "flops": flops_per_step(state.head, run.global_batch_size),
        }  # fmt: skip
    times = {model: [] for model in states}
    for _ in range(12):
        for model, (state, batches, run) in states.items():
            start = time.process_time()
            train_step(state, batches[state.step % len(batches)], run)
            times[model].append(time.process_time() - start)
    # The first steps set up what is used later; what disturbs a step can only make it longer: the third shortest.
    return {model: found[model] | {"seconds": sorted(times[model][2:])[2]} for model in found}


def budgets(config: StudyConfig, task: str, model: str, speed: dict) -> dict[str, float]:
    """Steps that each budget allows; HRM's variants have HRM's."""
    measured = speed[task][model if model in ARCHITECTURES else "HRM"]
    minutes = config.budget * TASKS[task].minutes * 60 / measured["seconds"]
    return {"minutes": minutes, "flops": config.budget * TASKS[task].teraflops * 1e12 / measured["flops"]}


# The runs


def epochs_of(config: StudyConfig, run: StudyRun, speed: dict) -> tuple[int, int]:
    """Epochs until the larger budget is used up, and between two of some eight evaluations on the way."""
    need = max(budgets(config, run.task, run.model, speed).values())
    interval = max(1, round(need / STEPS_AN_EPOCH / 8))
    return interval * -(-int(need) // (interval * STEPS_AN_EPOCH)), interval


def settings(task: str, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Of a run: the architecture, what its puzzles need, and what the model has of its own."""
    architecture, *own = overrides
    rounds = ONE_ROUND.get(architecture, ()) if TASKS[task].one_round else ()
    return architecture, *TASKS[task].settings, *rounds, *own


def last_checkpoint(config: StudyConfig, run: StudyRun, speed: dict) -> Path:
    """The averaged weights at the end of the run; they need not exist yet."""
    epochs, _ = epochs_of(config, run, speed)
    return run_folder(config, run) / f"step_{epochs * STEPS_AN_EPOCH}_ema"


def train(config: StudyConfig, run: StudyRun, speed: dict) -> None:
    folder, last = run_folder(config, run), last_checkpoint(config, run, speed)
    epochs, interval = epochs_of(config, run, speed)
    if not last.exists():
        command(
            "pretrain.py", "+experiment=study", f"data_path={data_folder(config, run.task)}",
            *settings(run.task, run.overrides),
            f"seed={run.seed}", f"epochs={epochs}", f"eval_interval={interval}", f"checkpoint_path={folder}",
            "resume=true", log=folder.with_suffix(".log"),
        )  # fmt: skip
    if run.task in VARIANT_TASKS and run.overrides[0] == HRM[0] and not (folder / "segments.json").exists():
        command(
            "-m", "evaluators.figures", "scaling", f"checkpoint={last}",
            f"max_steps={MOST_SEGMENTS}", f"examples={PUZZLES}", f"out={folder}/segments.png", "device=cpu",
            log=folder.with_suffix(".log"),
        )  # fmt: skip


def study(config: StudyConfig) -> None:
    from scripts.study_results import write_results

    if not any(planned_runs(config)):
        raise UserError("these parts, tasks and models have no run in common; leave some of them out")
    config = with_its_budget(config, write=not config.results)
    if config.results:
        speed = known_speeds(Path(config.folder))
        if not speed:
            raise UserError(f"folder={config.folder} holds no study yet; start one without results=true")
        there = [task for task in config.tasks if task in speed]
        if not there:
            raise UserError(f"folder={config.folder} has no {config.tasks[0]}; give tasks=[{','.join(speed)}]")
        if lacking := [task for task in config.tasks if task not in speed]:
            print(f"{', '.join(lacking)}: not in this study yet")
        config = config.model_copy(update={"tasks": there})
    else:
        build_datasets(config)
        speed = speeds(config)
    runs = list(planned_runs(config))
    if not config.results:

        def do(numbered: tuple[int, StudyRun]) -> None:
            number, run = numbered
            start = time.monotonic()
            train(config, run, speed)
            print(f"{number}/{len(runs)} {run.name}: {(time.monotonic() - start) / 60:.1f} min", flush=True)

        with ThreadPoolExecutor(config.workers) as pool:
            list(pool.map(do, enumerate(runs, 1)))
    write_results(config, runs, speed)


def main() -> None:
    with one_line_errors():
        study(from_cli(StudyConfig, sys.argv[1:], __doc__))


if __name__ == "__main__":
    main()
