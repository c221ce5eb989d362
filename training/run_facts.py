"""What a run folder and its dataset say about a run: what was trained on what, how far, at what cost.

Every file may be missing or damaged, as in runs of earlier versions, of the original, or in progress: then there is one
line less. Only `count_anew` loads PyTorch.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dataset.format import PuzzleDatasetMetadata, content_digest, load_metadata, same_content, set_file
from errors import UserError
from files import read_json, read_yaml
from puzzles.kind import kind_of
from training.checkpoints import read_records
from training.curves import Run
from training.wording import counted, duration, operations

CONFIG, ENVIRONMENT, BEST = "all_config.yaml", "environment.json", "best.json"
NO_DIFFERENCE = ("checkpoint_path", "run_name", "project_name", "resume")  # keys that every run has of its own
SIZES = {  # said first
    "num_heads": "head", "num_layers": "layer", "H_layers": "H layer", "L_layers": "L layer", "H_cycles": "H cycle",
    "L_cycles": "L cycle",
}  # fmt: skip


@dataclass
class Facts:
    """A run. Numbers are None where nothing says them."""

    name: str
    folder: Path
    curves: Run
    config: dict[str, Any] = field(default_factory=dict)  # empty: there is none that can be read
    starts: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> dict[str, float]:
        """The last evaluation."""
        return self.curves.evaluations[-1] if self.curves.evaluations else {}

    @property
    def best_value(self) -> float | None:
        values = [line["eval/exact_accuracy"] for line in self.curves.evaluations]
        return max((value for value in values if math.isfinite(value)), default=None)

    def recorded(self, key: str) -> Any:
        """What the last start that knows it recorded."""
        return next((start[key] for start in reversed(self.starts) if start.get(key) is not None), None)

    @property
    def steps(self) -> float:
        """How many it has made, those too that were made again after it went back to an earlier state."""
        firsts = [_number(start.get("first_step")) for start in self.starts] or [0]
        lasts = [start.get("last_step") for start in self.starts[:-1]] + [self.curves.last_step]
        return sum(_number(last) - first for first, last in zip(firsts, lasts, strict=True))

    @property
    def seconds(self) -> float | None:
        """How long it has trained, evaluations included; a start that was killed counts up to its last metrics."""
        metrics = _modified(self.folder / "metrics.jsonl")
        if self.starts and all("started" in start for start in self.starts):
            ends = [start.get("ended") for start in self.starts]
            ends[-1] = ends[-1] or metrics
            # One that was killed and gone on with does not say its end: nobody knows.
            spans = [_between(start["started"], end) for start, end in zip(self.starts, ends, strict=True)]
            return None if None in spans else sum(spans)
        if len(self.starts) == 1 and (begun := _modified(self.folder / CONFIG)) and metrics:
            # A copy has the times of copying.
            return seconds if (seconds := metrics - begun) > max(1.0, self.curves.last_step * 1e-4) else None
        return None

    @property
    def flops(self) -> float | None:
        each = self.recorded("flops_per_step")
        return each * self.curves.last_step if isinstance(each, int | float) else None

    @property
    def accuracy_key(self) -> tuple[bool, float]:
        """For sorting, the best first, and runs without an evaluation last."""
        value = self.last.get("eval/exact_accuracy", math.nan)
        return (not math.isfinite(value), 0.0 if not math.isfinite(value) else -value)


def read_facts(name: str, folder: Path, curves: Run) -> Facts:
    facts = Facts(name, folder, curves)
    with suppress(UserError):
        config = read_yaml(folder / CONFIG, "")
        facts.config = config if isinstance(config, dict) else {}
    with suppress(UserError):
        starts = read_json(folder / ENVIRONMENT, "")
        facts.starts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    with suppress(UserError):
        best = read_json(folder / BEST, "")
        facts.best = best if isinstance(best, dict) else {}
    return facts


def count_anew(facts: Facts) -> None:
    """Add what a run of an earlier version did not record: its parameters, and the operations of a step.

    They follow from the config and the dataset; where those are not here, nothing is added.
    """
    if facts.recorded("parameters") is not None or not facts.config:
        return
    with suppress(Exception):  # whatever an architecture says to a config or a dataset that are not its own
        import torch

        from training.config import load_config
        from training.flops import META, count_parameters, flops_per_step

        config = load_config(str(facts.folder / CONFIG))
        metadata = load_metadata(Path(config.data_path) / "train")
        with torch.random.fork_rng(devices=[]):
            head = config.arch.build_for(metadata, batch_size=config.global_batch_size, device=META)
            found = {"parameters": count_parameters(head)}
            with suppress(Exception):
                found["flops_per_step"] = flops_per_step(head, config.global_batch_size)
        facts.starts = [found | start for start in facts.starts] or [found]


def _modified(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def _between(start: str, end: str | float | None) -> float | None:
    with suppress(ValueError, TypeError):
        begun = datetime.fromisoformat(start).timestamp()
        ended = datetime.fromisoformat(end).timestamp() if isinstance(end, str) else float(end)
        return max(0.0, ended - begun)
    return None


# In words: what is said of one run


def said(facts: Facts) -> Iterator[tuple[str, str]]:
    """(what, text) of everything that is known."""
    config, last = facts.config, facts.curves.last_step
    if arch := _mapping(config.get("arch")):
        yield "Model", architecture_in_words(arch, facts.recorded("parameters"))
    if config.get("data_path"):
        path = Path(str(config["data_path"]))
        yield "Data", dataset_in_words(path) + (", built anew since" if was_built_anew(path, facts.folder) else "")
    if config:
        yield "Training", training_in_words(config, facts.curves)
    total = facts.recorded("total_steps")
    progress = f"step {last:,.0f}" + (f" of {total:,}" if isinstance(total, int) else "")
    if isinstance(total, int) and last < total:
        progress += ": still running, stopped, or ended early"
    yield "Reached", progress + ("; the last line of metrics.jsonl is not whole" if facts.curves.torn else "")
    yield from _results(facts)
    if cost := cost_in_words(facts):
        yield "Cost", cost
    if facts.starts:
        yield "Where", where_in_words(facts.starts)
    yield "Folder", str(facts.folder)


def architecture_in_words(arch: Mapping[str, Any], parameters: Any) -> str:
    sizes = [f"hidden size {arch['hidden_size']}"] if "hidden_size" in arch else []
    sizes += [counted(arch[key], word) for key, word in SIZES.items() if _is_count(arch, key)]
    others = ("name", "loss", "attention", "forward_dtype", "halt_max_steps", "hidden_size", *SIZES)
    rest = [f"{key} {value}" for key, value in arch.items() if key not in others and value is not None]
    name = str(arch.get("name", "?")).rpartition("@")[2]
    counted_in = f", {parameters:,} parameters" if isinstance(parameters, int) else ""
    steps = f", at most {arch['halt_max_steps']} reasoning steps" if "halt_max_steps" in arch else ""
    text = f"{name}{counted_in}{steps}" + (f": {', '.join(sizes)}" if sizes else "")
    return text + (f" ({', '.join(rest)})" if rest else "")


def dataset_in_words(path: Path) -> str:
    """Its kind and size and how many examples each split has, as far as it is there."""
    found = []
    for split in ("train", "val", "test"):
        with suppress(UserError, OSError, ValueError):
            metadata = load_metadata(path / split)
            examples, samples = _examples(path / split, metadata)
            puzzles = f" of {metadata.total_groups:,} puzzles" if metadata.total_groups != examples else ""
            if not found:
                with suppress(UserError):
                    found.append(kind_of(metadata.model_dump(), samples, str(path)).title)
            found.append(f"{split}: {counted(examples, 'example')}{puzzles}")
    return f"{path}: {'; '.join(found)}" if found else f"{path}, which is not here"


def was_built_anew(path: Path, run: Path) -> bool:
    """Whether the training split is no longer what the run's checkpoints were trained on, as far as is known."""
    with suppress(UserError, OSError, ValueError):
        theirs = {record.data for record in read_records(run).values() if record.data is not None}
        return bool(theirs) and not any(same_content(data, content_digest(path / "train")) for data in theirs)
    return False


def _examples(folder: Path, metadata: PuzzleDatasetMetadata) -> tuple[int, list[np.ndarray]]:
    arrays = [np.load(set_file(folder, name, "inputs"), mmap_mode="r") for name in metadata.sets]
    return sum(map(len, arrays)), [rows[:1000] for rows in arrays]


def training_in_words(config: Mapping[str, Any], curves: Run) -> str:
    words = []
    if _is_count(config, "epochs") and _is_count(config, "global_batch_size"):
        words.append(f"{counted(config['epochs'], 'epoch')} in batches of {config['global_batch_size']:,}")
    if isinstance(config.get("lr"), int | float):
        rate = f"learning rate {config['lr']:g}"
        if _is_count(config, "lr_warmup_steps") and config["lr_warmup_steps"]:
            rate += f" after {config['lr_warmup_steps']:,} steps of warm-up"
        least = config.get("lr_min_ratio")
        rate += f", down to {least:.0%} of it along a cosine" if isinstance(least, int | float) and least < 1 else ""
        words.append(rate)
    others = ("optimizer", "weight_decay", "ema_decay", "seed")
    words += [f"{key} {config[key]}" for key in others if config.get(key) is not None]
    if (steps := _constant_steps(curves)) is not None:
        words.append(f"where it may halt it takes {steps:g} reasoning steps at every evaluation")
    return "; ".join(words)


def _constant_steps(curves: Run) -> float | None:
    """The mean steps until halting, if every evaluation has the same."""
    steps = {round(line["eval/halt_q/steps"], 2) for line in curves.evaluations if "eval/halt_q/steps" in line}
    return steps.pop() if len(steps) == 1 else None


def _results(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.last:
        yield "Result", f"{accuracies(facts.last)} at step {facts.last['step']:,.0f}"
    elif facts.curves.last_step:
        yield "Result", "no evaluation yet"
    best = facts.best
    if _number(best.get("value")) and best.get("step") != facts.last.get("step"):
        yield "Best", f"{best['value']:.2%} after all steps, {best.get('checkpoint')}: the best of several evaluations"
    if facts.curves.test:
        yield "Test split", f"{accuracies(facts.curves.test)}, evaluated once at the end"


def accuracies(line: Mapping[str, float]) -> str:
    """Both rules of halting."""
    text = f"{line['eval/exact_accuracy']:.2%} exactly right after all reasoning steps"
    if "eval/halt_q/exact_accuracy" in line:
        text += f", {line['eval/halt_q/exact_accuracy']:.2%} where the model halts"
        text += f" (after {line['eval/halt_q/steps']:.1f} steps)" if "eval/halt_q/steps" in line else ""
    return text


def cost_in_words(facts: Facts) -> str:
    words = []
    if seconds := facts.seconds:
        words.append(f"{duration(seconds)}, evaluations included: {facts.steps / seconds:.3g} steps a second")
    if facts.flops:
        each = facts.recorded("flops_per_step")
        words.append(f"{operations(each)} a training step as counted, {operations(facts.flops)} in all steps")
    return "; ".join(words)


def where_in_words(starts: list[dict[str, Any]]) -> str:
    last = starts[-1]
    words = [str(last.get("device", "?"))]
    if isinstance(last.get("ranks"), int) and last["ranks"] > 1:
        words.append(counted(last["ranks"], "rank"))
    if str(words[0]).startswith("cpu") and isinstance(last.get("threads"), int):
        words.append(counted(last["threads"], "thread"))
    packages = _mapping(last.get("packages"))
    words += [f"PyTorch {packages['torch']}"] if "torch" in packages else []
    words += [f"commit {last['git_commit']}"] if last.get("git_commit") else []
    words += [f"begun {last['started'][:16].replace('T', ' ')} UTC"] if isinstance(last.get("started"), str) else []
    words += [f"{len(starts)} starts, of which this is the last"] if len(starts) > 1 else []
    return ", ".join(words)


def command_of(facts: Facts) -> list[str] | None:
    """The words of the command of the last start."""
    command = facts.starts[-1].get("command") if facts.starts else None
    return [str(word) for word in command] if isinstance(command, list) and command else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_count(values: Mapping[str, Any], key: str) -> bool:
    return isinstance(values.get(key), int) and not isinstance(values[key], bool)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


# Several runs


def differences(runs: list[Facts]) -> dict[str, list[str]]:
    """Config key -> what each run has, for keys in which they differ; "–" for a run that has none, or no config."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one if key not in NO_DIFFERENCE)
    rows = {key: [_plain(one[key]) if key in one else "–" for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            # Of the architecture's name, its class tells enough.
            yield f"{prefix}{key}", str(value).rpartition("@")[2] if f"{prefix}{key}" == "arch.name" else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
