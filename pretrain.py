"""Train a model: python pretrain.py [+experiment=NAME] [key=value …], or torchrun --nproc-per-node N pretrain.py …

Shards in `data_path` -> the run folder `checkpoint_path` (training/run_folder.py says what is in it). docs/training.md
has the experiments; `--help` lists every key.
"""

import training.launcher
import training.threads  # noqa: F401, before torch loads

# isort: split

import logging
import math
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing import errors as elastic
from tqdm import tqdm

from errors import UserError, one_line_errors
from puzzle_dataset import PuzzleDataset
from training import outlook, resume, run_folder
from training.checkpoints import save_weights
from training.command_line import compose_run, pretrain_help
from training.compilation import compile_blocks, compile_optimizers
from training.config import PretrainConfig, from_hydra
from training.data import open_datasets, train_batches_on
from training.distributed import Ranks, select_device
from training.evaluation import choose_batch_size, evaluate_split
from training.flops import count_parameters
from training.metrics import MetricsLog, Unread, progress_bar, show, start_logging, train_metrics
from training.step import TrainState, create_state, train_step
from training.stopping import Stopped, StopRequest
from training.torch_predictions import save_torch

CONFIG_DIR = str(Path(__file__).resolve().parent / "config")

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What the steps of the loop share."""

    config: PretrainConfig
    ranks: Ranks
    device: torch.device
    state: TrainState
    metrics_log: MetricsLog
    bar: tqdm
    stop: StopRequest
    schedule: resume.Schedule
    passes: int  # over the training data, an evaluation after each
    unread: Unread
    pace: outlook.Pace
    fixed: dict  # what must not change on resuming, see `resume.fixed_values`

    @property
    def folder(self) -> Path:
        return Path(self.config.checkpoint_path)

    @property
    def evaluated_name(self) -> str:
        """The name of the checkpoint that is evaluated at this step."""
        return f"step_{self.state.step}" + ("" if self.state.ema is None else "_ema")

    def finished(self) -> bool:
        """Whether the epochs are used up or a rule of `early_stop` holds; then the last weights are evaluated."""
        return is_over(self.state, self.passes)


def is_over(state: TrainState, passes: int) -> bool:
    """Whether a run of so many passes has nothing left to do."""
    return state.passes == passes or (state.evaluated == state.step and state.early.holds())


def train(config: PretrainConfig, ranks: Ranks, device: torch.device) -> None:
    """Do the whole run: train for `eval_interval` epochs, evaluate, save, until the epochs are used up."""
    train_data, eval_data, test_data = open_datasets(config, ranks)
    if eval_data is None and config.early_stop.patience is not None:
        raise UserError("early_stop.patience counts evaluations, but there is nothing to evaluate on; leave it out")
    with ExitStack() as held:
        ranks.from_main(lambda: held.enter_context(run_folder.lock(config)))
        run = start(config, ranks, device, train_data, eval_data, test_data)
        train_and_evaluate(run, train_data, eval_data, test_data)


def train_and_evaluate(
    run: Run, train_data: PuzzleDataset, eval_data: PuzzleDataset | None, test_data: PuzzleDataset | None
) -> None:
    """Everything between the start and the farewell."""
    config, ranks, device, state = run.config, run.ranks, run.device, run.state
    if compile_blocks(state.head.model, config.compile, device, state.total_steps):
        log.info("compiling the model's blocks")
        compile_optimizers(state.optimizers, device, state.total_steps)
    for data in (eval_data, test_data):
        if data is not None:
            choose_batch_size(config.eval_batch_size, data, state.head, ranks, device)
    try:
        while not run.finished():
            train_pass(run, train_data)
            evaluate_pass(run, eval_data)
        run.bar.total = run.bar.n  # it was known only about
        if test_data is not None:
            test_at_the_end(run, test_data)
        farewell = f"finished: {run.folder / run.evaluated_name}"
        if early := state.early.reason():
            farewell += f" ({early})"
    except Stopped as reason:
        save_state(run)
        farewell = f"stopped ({reason}) at step {state.step}; to go on: the same command with resume=true"
        if config.resume is not True:
            farewell += f" checkpoint_path='{config.checkpoint_path}'"
    except BaseException:
        if ranks.world_size == 1:  # else it would need the others; after a resume the same metrics come again
            with suppress(RuntimeError, UserError):  # of a device or disk that is gone: the first error counts
                read_metrics(run, complete=True)
        raise
    finally:
        run.bar.close()  # an error gets a line of its own
    run.stop.done()
    run.metrics_log.close()
    ranks.from_main(lambda: run_folder.record_end(run.folder, state.step))
    if ranks.is_main:
        show(farewell)


def start(
    config: PretrainConfig,
    ranks: Ranks,
    device: torch.device,
    train_data: PuzzleDataset,
    eval_data: PuzzleDataset | None,
    test_data: PuzzleDataset | None,
) -> Run:
    """A fresh run, or the one that `resume` names, restored to where it was. Rank 0 says what it will do."""
    stop = StopRequest(config.max_minutes, ranks)
    fixed = resume.fixed_values(config)
    found = ranks.from_main(lambda: resume.find_state(config))
    saved, keep_bytes = (None, 0) if found is None else (found.path, found.manifest.metrics_bytes)
    if found is not None:
        resume.check_same_run(saved, found.manifest, fixed, config)
        resume.check_not_past_the_end(saved, found.manifest, config)
    ranks.from_main(lambda: run_folder.check_free(config, saved))
    torch.manual_seed(config.seed + ranks.rank)
    # The state has weights of its own; the checkpoint that the run began with may be gone by now.
    weights = {} if found is None else {"load_checkpoint": None}
    state = create_state(config.model_copy(update=weights), train_data.metadata, ranks, device)
    if found is not None:
        resume.load_state(saved, found.manifest, state, Path(config.checkpoint_path), ranks, device)
        log.info("resuming %s", saved)
    forgotten = ranks.from_main(lambda: forget_best_of_other_puzzles(state, config))  # before asking `early_stop`
    passes = config.epochs // config.epochs_per_pass
    work = ranks.from_main(
        lambda: outlook.work_left(state, config, ranks, device, passes, eval_data, test_data),
    )
    warning = ranks.from_main(lambda: outlook.check_pace(work, config.max_minutes))
    branches_off = found is not None and saved.parent.resolve() != Path(config.checkpoint_path).resolve()
    if branches_off and is_over(state, passes):
        raise UserError(
            f"{saved} is of a run that is over, with nothing left to do; raise epochs, or change early_stop"
        )
    # Only now: a mistake leaves nothing behind.
    folder = ranks.from_main(lambda: prepare_folder(config, found, state, ranks, device, work.step, forgotten))
    metrics_log = MetricsLog(
        ranks, folder, config, count_parameters(state.head), keep_bytes=keep_bytes, wandb_id=state.wandb_id
    )
    state.wandb_id = metrics_log.wandb_id
    for line in outlook.describe(work, state.head, config, ranks, device, train_data, eval_data):
        log.info("%s", line)
    if warning is not None:
        log.warning("%s", warning)
    bar = progress_bar(total=state.total_steps, initial=state.step, desc="train", unit="step", enabled=ranks.is_main)
    return Run(
        config, ranks, device, state, metrics_log, bar, stop, resume.Schedule(config), passes, Unread(ranks),
        outlook.Pace(work), fixed,
    )  # fmt: skip


def prepare_folder(
    config: PretrainConfig,
    found: resume.Found | None,
    state: TrainState,
    ranks: Ranks,
    device: torch.device,
    flops_per_step: float | None,
    forgotten: bool,
) -> Path:
    """Make the run folder, or leave in it what belongs to the state `found`, which `state` was loaded from and whose
    best was `forgotten` or not.

    Called on rank 0. Raises `UserError` if it cannot be written.
    """
    saved, keep_bytes = (None, 0) if found is None else (found.path, found.manifest.metrics_bytes)
    folder = run_folder.create(config, saved, keep_bytes)
    about = {"parameters": count_parameters(state.head), "first_step": state.step, "total_steps": state.total_steps}
    run_folder.record_environment(folder, ranks, device, about | {"flops_per_step": flops_per_step}, saved)
    if found is not None and saved.parent.resolve() == folder.resolve():
        resume.set_aside(found.passed_over)
        later = [] if config.resume is True else resume.later_checkpoints(folder, state.step)
        resume.set_aside(later)  # after a kill the same ones come again
        if state.best is not None or later or forgotten:  # the file may be that of states that are now aside
            run_folder.write_best(folder, state.best)
    return folder


def forget_best_of_other_puzzles(state: TrainState, config: PretrainConfig) -> bool:
    """Whether the best so far was found on others than are looked at from here on; then it does not count."""
    before, now = state.evaluated_on, evaluated_on(config)
    if before in (None, now):  # None: not yet, or in an earlier version
        return False
    log.warning("evaluated was %s, from here on %s is: the best so far no longer counts", before, now)
    state.forget_best()
    return True


def evaluated_on(config: PretrainConfig) -> str:
    """Which puzzles evaluations are of, in words that `TrainState.evaluated_on` keeps."""
    part = "" if config.eval_max_examples is None else f", {config.eval_max_examples} examples of each set"
    return f"the split {config.eval_split}{part}"


def train_pass(run: Run, train_data: PuzzleDataset) -> None:
    """Take the steps of one pass, or what is left of it; `early_stop` may end it early."""
    state = run.state
    if state.early.ended_pass and state.early.holds():  # stopped by a signal between that end and its evaluation
        return
    state.early.ended_pass = False
    state.head.train()
    run.pace.begin()
    for batch in train_batches_on(run.device, train_data, state.passes, state.batches):
        if state.step >= state.total_steps:  # batches may be left over
            break
        sums, lr = train_step(state, batch, run.config)
        run.unread.add(state.step, sums, lr)
        run.stop.note_step(run.pace.note_step())
        # At fixed steps, so that a resumed run looks where an uninterrupted one does.
        if state.step % run.config.log_interval == 0 or run.schedule.falls_on(state.step):
            look(run)
        elif run.stop.asked_after(state.step):
            stop_between_looks(run)
        if state.early.ended_pass:
            break
    run.stop.note_step(0)  # what follows is looked at batch by batch
    if run.unread:
        settle(run)


def look(run: Run) -> None:
    """Look at the metrics that have arrived, note whether the pass ends early, save a state if one is due.

    Raises `Stopped` if the run should stop. All ranks agree on all of it. The metrics of the newest steps are still on
    their way, so that the device does not wait for the host. Every look decides on early stopping without them, before
    any state is saved: a save by the clock must not change the decision.
    """
    problem = read_metrics(run)
    failed, stopping, due, early = run.ranks.any(
        problem is not None,
        run.stop.reason is not None,
        run.schedule.due(run.state.step),
        run.state.early.reason() is not None,
    )
    if failed:
        end_with(run, problem)
    if stopping or due or early:
        settle(run)
    run.state.early.ended_pass = early and run.state.early.holds()
    if stopping:
        raise run.stop.stopped()
    if due:
        save_state(run)
    if run.ranks.is_main and (line := run.pace.estimate(*run.stop.limit)):
        show(line)


def stop_between_looks(run: Run) -> NoReturn:
    """Stop where an uninterrupted run does not look; the resumed one will decide on early stopping as that does."""
    problem = read_metrics(run)  # what that will know at its next look
    run.state.early.holding = True
    end_with(run, problem or read_metrics(run, complete=True))
    raise run.stop.stopped()


def settle(run: Run) -> None:
    """Wait for the metrics of every step."""
    end_with(run, read_metrics(run, complete=True))
    run.state.early.count_held()


def end_with(run: Run, problem: UserError | None) -> None:
    """End the run on all ranks if rank 0 has a problem; nothing since the last state is saved."""

    def say() -> None:
        if problem is not None:
            raise problem

    run.ranks.from_main(say)


def diverged(run: Run, what: str, step: int) -> UserError:
    states = resume.saved_states(run.folder)
    kept = f"the last good state is {states[0]}" if states else "no state was saved before"
    return UserError(f"{what} at step {step}: the run has diverged; {kept}; lower lr")


def read_metrics(run: Run, complete: bool = False) -> UserError | None:
    """Record the metrics that have arrived (with `complete`, of every step); -> on rank 0, what the run has to end for:
    a value that is not finite, or a line that cannot be written."""
    for step, values, lr in run.unread.take(complete):
        metrics = train_metrics(values, run.config.global_batch_size, lr)
        bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if bad and run.ranks.is_main:
            run.unread.clear()  # nothing after this is worth a line
            return diverged(run, bad[0], step)
        run.state.early.note_step(values["count"], values["exact_accuracy"])
        try:
            run.metrics_log.write(step, metrics)
        except UserError as problem:
            return problem
        if metrics["train/count"]:  # a step in which nothing halted has no accuracy
            loss, exact = metrics["train/lm_loss"], metrics["train/exact_accuracy"]
            run.bar.set_postfix(loss=f"{loss:.3f}", exact=f"{exact:.3f}", refresh=False)
        if not run.bar.disable and run.bar.n == run.bar.initial:
            run.bar.unpause()  # the first step compiles, which says nothing about the time of the others
        run.bar.update()
    return None


def save_state(run: Run) -> None:
    written = run.ranks.from_main(run.metrics_log.sync)
    resume.save_state(run.state, run.config, run.ranks, written, run.fixed)
    run.schedule.saved()


def evaluate_pass(run: Run, eval_data: PuzzleDataset | None) -> None:
    """Evaluate what the pass has made, if there is anything to evaluate on, end the pass, save if that is asked for."""
    state = run.state
    # A run that is killed between its first checkpoint and its first state would have to begin again, over the first.
    (first,) = run.ranks.any(run.ranks.is_main and not resume.saved_states(run.folder))
    if first:
        save_state(run)
    outputs = {}
    if eval_data is not None:
        metrics, outputs = evaluate_weights(run, eval_data, run.config.eval_save_outputs)
        state.evaluated_on = evaluated_on(run.config)
        record(run, metrics)
        if run.ranks.is_main:
            show(summary(state.step, metrics))
    if not state.early.holds():  # else the pass is not over: it would go on if early_stop is lifted
        state.passes, state.batches = state.passes + 1, 0
    state.evaluated = state.step
    (improved,) = run.ranks.any(
        run.ranks.is_main
        and eval_data is not None
        and state.note_best(metrics["eval/exact_accuracy"], run.evaluated_name)
    )
    if run.config.checkpoint_every_eval or improved or run.finished():
        run.ranks.from_main(lambda: save_checkpoints(run, improved))
        if outputs:
            save_torch(run.folder / run.evaluated_name, outputs, run.ranks)
        save_state(run)


def evaluate_weights(run: Run, dataset: PuzzleDataset, save_outputs: list[str]) -> tuple[dict[str, float], dict]:
    """-> metrics and saved outputs (see `evaluate_split`), of the averaged weights if there are any.

    A stop request interrupts a long evaluation too; it is repeated after the resume.
    """
    with run.state.averaged():
        return evaluate_split(
            run.state.head, dataset, run.ranks, run.device, save_outputs,
            cuda_graph=run.config.cuda_graph, after_batch=run.stop.check,
        )  # fmt: skip


def save_checkpoints(run: Run, improved: bool) -> None:
    """Save `step_<n>`, the averaged `step_<n>_ema` if there is one, and `best.json` if this is the best."""
    state = run.state

    def save(name: str) -> None:
        if save_weights(run.folder / name, state.head.state_dict(), run.fixed["content.train"]):
            resume.set_aside(resume.made_with(run.folder, name))

    if state.ema is not None:
        with state.averaged():
            save(run.evaluated_name)
    save(f"step_{state.step}")
    if improved:
        run_folder.write_best(run.folder, state.best)


def test_at_the_end(run: Run, test_data: PuzzleDataset) -> None:
    """Evaluate the whole test split, if training looked at something else; its metrics are called `test/…`."""
    metrics, _ = evaluate_weights(run, test_data, [])
    if run.ranks.is_main:
        show("whole test split: " + summary(run.state.step, metrics))
    record(run, {key.replace("eval/", "test/", 1): value for key, value in metrics.items()})


def record(run: Run, metrics: dict[str, float]) -> None:
    run.ranks.from_main(lambda: run.metrics_log.write(run.state.step, metrics))


def summary(step: int, metrics: dict[str, float]) -> str:
    return (
        f"step {step}: exact accuracy {metrics['eval/exact_accuracy']:.4f}, where the model halts "
        f"{metrics['eval/halt_q/exact_accuracy']:.4f} after {metrics['eval/halt_q/steps']:.1f} steps; cell accuracy "
        f"{metrics['eval/accuracy']:.4f}, loss {metrics['eval/lm_loss']:.4f}"
    )


def launch(config: PretrainConfig) -> None:
    ranks = Ranks.from_environment()
    config.check_ranks(ranks.world_size)
    device = select_device(config.device, ranks.local_rank)
    start_logging(ranks.is_main)
    with ranks.connected(device):
        config = ranks.broadcast_object(run_folder.name_run(config) if ranks.is_main else None)
        train(config, ranks, device)


@elastic.record  # torchrun then ends its report with the traceback of the rank that failed first
def main() -> None:
    with one_line_errors():
        args = sys.argv[1:]
        if {"-h", "--help"} & set(args):
            print(pretrain_help(__doc__, CONFIG_DIR, args))
            return
        launch(from_hydra(compose_run(CONFIG_DIR, args)))


if __name__ == "__main__":
    sys.exit(main())
