"""Sums over a batch -> the numbers that are logged, to metrics.jsonl always and to W&B if it is enabled.

Also what a run prints as it goes: log lines on stdout, and progress bars, live on a terminal, rare in a log file.
"""

import hashlib
import json
import logging
import netrc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlparse

import torch
from torch import Tensor
from tqdm import tqdm

from errors import UserError, first_line
from files import Written
from training.config import PretrainConfig
from training.distributed import Ranks

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


def reduce_metrics(metrics: dict[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """The sum over the ranks; on the other ranks the values are meaningless."""
    (values,) = Fetch([metrics], ranks).values()
    return values


class Fetch:
    """The metrics of some steps on their way to the host: summed over the ranks, in one call and one transfer.

    The device meanwhile goes on with its next work; `values` waits for these metrics only.
    """

    def __init__(self, steps: list[dict[str, Tensor]], ranks: Ranks):
        """Start the transfer. Every rank must pass the same keys for the same steps."""
        self._keys = [sorted(metrics) for metrics in steps]
        tensors = [metrics[key] for metrics, keys in zip(steps, self._keys, strict=True) for key in keys]
        dtype = torch.float32 if any(tensor.device.type == "mps" for tensor in tensors) else torch.float64
        stacked = ranks.sum_to_main(torch.stack([tensor.to(dtype) for tensor in tensors]))
        self._arrived = None
        if stacked.is_cuda:
            stacked = stacked.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._stacked = stacked

    def values(self) -> list[dict[str, float]]:
        """The sums of each step, on rank 0; on the other ranks the values are meaningless."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = iter(self._stacked.tolist())
        return [{key: next(numbers) for key in keys} for keys in self._keys]


class Unread:
    """Metrics of training steps that nobody has looked at yet.

    Each `take` starts the transfer of those added since, and returns those whose transfer the previous `take` started.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._added: list[tuple[int, dict[str, Tensor], float]] = []  # step, its sums, its lr
        self._sent: list[tuple[tuple[int, ...], tuple[float, ...], Fetch]] = []

    def __bool__(self) -> bool:
        return bool(self._added or self._sent)

    def add(self, step: int, sums: dict[str, Tensor], lr: float) -> None:
        self._added.append((step, sums, lr))

    def take(self, complete: bool = False) -> list[tuple[int, dict[str, float], float]]:
        """-> (step, its sums over the ranks, its lr), in order; with `complete`, of all steps."""
        ready, self._sent = self._sent, []
        if self._added:
            steps, sums, lrs = zip(*self._added, strict=True)
            self._sent, self._added = [(steps, lrs, Fetch(sums, self._ranks))], []
        if complete:
            ready, self._sent = ready + self._sent, []
        return [item for steps, lrs, fetch in ready for item in zip(steps, fetch.values(), lrs, strict=True)]

    def clear(self) -> None:
        self._added, self._sent = [], []


def train_metrics(sums: dict[str, float], global_batch_size: int, lr: float) -> dict[str, float]:
    """Divide losses by the batch size, and other sums by the number of labelled sequences that halted."""
    count = max(sums["count"], 1)
    values = {key: value / (global_batch_size if key.endswith("loss") else count) for key, value in sums.items()}
    return {f"train/{key}": value for key, value in values.items()} | {"train/lr": lr}


def eval_metrics(by_set: dict[str, dict[str, float]]) -> dict[str, float]:
    """Divide everything by the number of sequences; `eval/<set>/…` besides `eval/…` if there are several sets."""
    pooled = {key: sum(sums[key] for sums in by_set.values()) for key in next(iter(by_set.values()))}
    named = {"eval": pooled}
    if len(by_set) > 1:
        named |= {f"eval/{name}": sums for name, sums in by_set.items()}
    return {
        f"{prefix}/{key}": value / max(sums["count"], 1)
        for prefix, sums in named.items()
        for key, value in sums.items()
        if key != "count"
    }


class MetricsLog:
    """Rank 0's record of the run; on other ranks every call does nothing."""

    def __init__(
        self,
        ranks: Ranks,
        folder: Path | None,
        config: PretrainConfig,
        num_params: int,
        keep_bytes: int = 0,
        wandb_id: str | None = None,
    ):
        """A resumed run keeps its W&B run and the first `keep_bytes` of metrics.jsonl: the lines up to its state."""
        self._file, self._digest, self._size = None, hashlib.sha256(), 0
        ranks.from_main(lambda: self._open(folder / METRICS_FILE, keep_bytes))
        self._wandb = _start_wandb(folder, config, num_params, wandb_id) if ranks.is_main else None
        self.wandb_id = wandb_id if self._wandb is None else self._wandb.id

    def _open(self, path: Path, keep_bytes: int) -> None:
        with open(path, "ab+") as file:
            file.seek(0)
            while block := file.read(min(1 << 20, keep_bytes - self._size)):
                self._count(block)
            assert self._size == keep_bytes, "a state is only resumed with its metrics"
            file.truncate(keep_bytes)
        self._file = open(path, "ab")

    def _count(self, data: bytes) -> None:
        self._digest.update(data)
        self._size += len(data)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        line = (json.dumps({"step": step} | values) + "\n").encode()
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._file.name}: {error.strerror}; saved states are untouched") from None
        self._count(line)
        self._tell_wandb(lambda run: run.log(values, step=step))

    def sync(self) -> Written:
        """Put everything on disk; -> what metrics.jsonl holds."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        return Written(self._size, self._digest.hexdigest())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._tell_wandb(lambda run: run.finish())

    def _tell_wandb(self, call: Callable[[Any], None]) -> None:
        """Call W&B, which may fail at any time: training does not stop for it."""
        if self._wandb is None:
            return
        try:
            call(self._wandb)
        except Exception as error:
            log.warning("W&B failed, going on without: %s: %s", type(error).__name__, first_line(error))
            self._wandb = None


def _wandb_login() -> bool:
    """Whether there is a key in the environment or where `wandb login` puts it; never prompts."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start_wandb(folder: Path, config: PretrainConfig, num_params: int, run_id: str | None):
    """The W&B run, or None. `WANDB_MODE` decides; without it, runs without a login are offline. Failures only warn.

    `run_id` continues an earlier run. W&B drops the steps that it already has: after a kill they come out the same.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled":
        return None
    try:
        import wandb

        if mode in (None, "online") and not _wandb_login():
            mode = "offline"
        run = wandb.init(
            project=config.project_name,
            name=config.run_name,
            config=config.model_dump(),
            dir=folder,
            mode=mode,
            id=run_id,
            resume=None if run_id is None else "allow",
            settings=wandb.Settings(silent=True, x_disable_stats=True, init_timeout=30),
        )
        if run_id is None:
            run.log({"num_params": num_params}, step=0)
    except Exception as error:  # W&B is optional: no failure of it may cost a training run
        log.warning("W&B is off for this run: %s: %s", type(error).__name__, first_line(error))
        return None
    return run


class _Display:
    """A stream that is only looked at: what it cannot take, because its disk is full, is not worth a run."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def progress_bar(
    iterable=None, *, total: int, desc: str, unit: str, enabled: bool, leave: bool = True, initial: int = 0
) -> tqdm:
    return tqdm(
        iterable,
        file=_Display(sys.stderr),
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        disable=not enabled,
        leave=leave,
        mininterval=0.1 if sys.stderr.isatty() else 10,
        smoothing=0.05,
    )


def show(line: str) -> None:
    """Print a line above the progress bars. A full disk under stdout is not worth a run; a reader of it that has gone
    away raises BrokenPipeError."""
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def start_logging(is_main: bool, as_json: bool = False) -> None:
    """Rank 0 logs everything; the other ranks log errors only.

    A command that prints JSON logs its warnings on stderr, and nothing else.
    """
    level = logging.INFO if is_main else logging.ERROR
    if as_json:
        level = max(level, logging.WARNING)
    logging.raiseExceptions = False  # a reader that has gone away ends the command elsewhere, without tracebacks
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr if as_json else sys.stdout)
