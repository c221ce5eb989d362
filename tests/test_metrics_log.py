"""metrics.jsonl and W&B: python -m pytest tests/test_metrics_log.py"""

import json
import logging
import resource
import sys
from types import SimpleNamespace

import pytest
import torch

import pretrain
from errors import UserError
from tests.launch import run
from tests.runs import lines_with, read_metrics, reference_overrides
from tests.runs import pretrain as pretrain_run
from training.distributed import Ranks
from training.metrics import MetricsLog, Unread, progress_bar

CONFIG = SimpleNamespace(project_name="project", run_name="run", model_dump=lambda: {"seed": 7})
ONE = Ranks(0, 1, 0)


class StandInRun:
    """Records what it is told; breaks from its `healthy`-th record on."""

    def __init__(self, healthy: int, **settings):
        self.healthy, self.settings, self.logged, self.finished = healthy, settings, [], False
        self.id = settings["id"] or "fresh"

    def log(self, values: dict, step: int) -> None:
        if len(self.logged) == self.healthy:
            raise ConnectionError("the network\nis gone")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The package's stand-in, with the runs that it was asked for."""
    module = SimpleNamespace(runs=[], healthy=1000, Settings=dict)

    def init(**settings):
        module.runs.append(StandInRun(module.healthy, **settings))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    return module


def sums(step: int, **more: float) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in dict(count=2, lm_loss=step / 2, **more).items()}


def test_metrics_are_read_at_the_look_after_the_one_that_sent_them():
    unread = Unread(ONE)
    assert unread.take() == [] and not unread
    for step in (1, 2):
        unread.add(step, sums(step), lr=step / 10)
    assert unread.take() == []
    unread.add(3, sums(3, q_continue_loss=7), lr=0.3)  # other metrics than in the steps before
    assert unread.take() == [(1, {"count": 2, "lm_loss": 0.5}, 0.1), (2, {"count": 2, "lm_loss": 1.0}, 0.2)]
    unread.add(4, sums(4), lr=0.4)
    assert unread
    assert unread.take(complete=True) == [
        (3, {"count": 2, "lm_loss": 1.5, "q_continue_loss": 7}, 0.3),
        (4, {"count": 2, "lm_loss": 2.0}, 0.4),
    ]
    assert unread.take(complete=True) == [] and not unread


def test_a_crash_loses_no_metrics(tmp_path, monkeypatch):
    whole = lines_with(pretrain_run(tmp_path / "whole"), "train/")
    train_step = pretrain.train_step

    def breaking_step(state, *args):
        if state.step == 8:
            raise RuntimeError("an illegal memory access")
        return train_step(state, *args)

    monkeypatch.setattr(pretrain, "train_step", breaking_step)
    with pytest.raises(RuntimeError, match="illegal"):
        pretrain_run(tmp_path / "crashed", log_interval=5)
    assert read_metrics(tmp_path / "crashed") == whole[:8]


def write_steps(folder, steps, **options) -> MetricsLog:
    metrics_log = MetricsLog(ONE, folder, CONFIG, 27, **options)
    for step in steps:
        metrics_log.write(step, {"train/lm_loss": step / 2})
    metrics_log.close()
    return metrics_log


@pytest.mark.parametrize("mode", [None, "online", "offline"])
def test_every_step_arrives(tmp_path, monkeypatch, wandb, mode):
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    write_steps(tmp_path, [1, 2])
    (logged,) = wandb.runs
    assert logged.settings["mode"] == mode
    assert logged.settings["config"] == {"seed": 7}
    assert logged.logged == [(0, {"num_params": 27}), (1, {"train/lm_loss": 0.5}), (2, {"train/lm_loss": 1.0})]
    assert logged.finished


def test_without_a_login_it_is_offline_and_disabled_is_off(tmp_path, monkeypatch, wandb):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "nowhere"))
    write_steps(tmp_path, [1])
    assert wandb.runs[0].settings["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    write_steps(tmp_path, [1])
    assert len(wandb.runs) == 1


def test_a_resumed_run_is_the_same_run(tmp_path, wandb):
    first = write_steps(tmp_path, [1])
    assert first.wandb_id == "fresh"
    again = write_steps(tmp_path, [2], wandb_id=first.wandb_id)
    assert (wandb.runs[1].settings["id"], wandb.runs[1].settings["resume"]) == ("fresh", "allow")
    assert wandb.runs[1].logged == [(2, {"train/lm_loss": 1.0})]
    assert again.wandb_id == "fresh"


def test_a_failure_in_the_middle_costs_one_warning(tmp_path, wandb, caplog):
    wandb.healthy = 3
    with caplog.at_level(logging.WARNING):
        metrics_log = write_steps(tmp_path, range(1, 10))
    assert caplog.messages == ["W&B failed, going on without: ConnectionError: the network"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9
    assert not wandb.runs[0].finished
    assert metrics_log.wandb_id == "fresh"  # the next start tries again


def test_a_failure_at_the_start_costs_one_warning(tmp_path, wandb, caplog):
    wandb.init = lambda **settings: 1 / 0
    with caplog.at_level(logging.WARNING):
        write_steps(tmp_path, [1], wandb_id="earlier")
    assert caplog.messages == ["W&B is off for this run: ZeroDivisionError: division by zero"]


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    metrics_log = MetricsLog(ONE, tmp_path, CONFIG, 27)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # a file of ten bytes is as large as any may be
    try:
        with pytest.raises(UserError, match=r"cannot write .*/metrics\.jsonl: File too large; saved states are"):
            metrics_log.write(1, {"train/lm_loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.apart
def test_the_real_package_goes_on_offline_with_the_run_of_the_state(tmp_path):
    """Here W&B runs as installed, without a login."""
    env = {"WANDB_MODE": None, "HOME": str(tmp_path), "WANDB_API_KEY": None}
    changes = {"epochs": 4, "resume": "true"}
    run("pretrain.py", *reference_overrides(tmp_path / "run", **changes, max_minutes=1e-5), **env)
    run("pretrain.py", *reference_overrides(tmp_path / "run", **changes), **env)
    ids = [path.name.split("-")[-1] for path in (tmp_path / "run/wandb").glob("offline-run-*")]
    assert len(ids) == 2
    manifest = json.loads((tmp_path / "run/state_20/manifest.json").read_text())
    assert set(ids) == {manifest["progress"]["wandb_id"]}


def test_a_bar_that_cannot_be_shown_costs_nothing(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr.write", full)
    monkeypatch.setattr("sys.stderr.flush", full)
    bar = progress_bar(range(3), total=3, desc="train", unit="step", enabled=True)
    assert list(bar) == [0, 1, 2]
    bar.close()
