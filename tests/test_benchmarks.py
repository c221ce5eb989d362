"""The benchmarks' baseline and their counts: python -m pytest tests/test_benchmarks.py"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import evaluate, loader, report, step
from benchmarks.baseline import PlainDataset, PlainTrainer, plain_batches
from benchmarks.flops import (
    KNOWN_DEVICES,
    count_parameters,
    evaluation_flops,
    layer_kernels,
    layer_passes,
    roofline,
    step_kernels,
    total,
)
from benchmarks.sizes import SIZES, build_head, config_of, metadata_of, random_batches, write_dataset
from models.hrm.hrm_act_v1 import Block
from puzzle_dataset import PuzzleDataset, sample_batches
from tests.launch import ROOT, error_line, run
from training.config import load_config
from training.distributed import Ranks

CPU, ONE = torch.device("cpu"), Ranks(0, 1, 0)
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def full_size(name: str, batch: int):
    with torch.device("meta"):
        return build_head(SIZES[name], batch)


@pytest.mark.parametrize(
    ("name", "batch", "tera"), [("sudoku", 768, 28), ("sudoku", 96, 3.5), ("arc", 96, 49), ("maze", 96, 49)]
)
def test_operations_of_a_step(name, batch, tera):
    head = full_size(name, batch)
    kernels = step_kernels(head.model.config, batch, count_parameters(head), fused=True, plain=True)
    assert float(f"{total(kernels).flops / 1e12:.2g}") == tera
    assert count_parameters(head) == pytest.approx(27.3e6, rel=2e-3)
    assert layer_passes(head.model.config) == (16 + 8 + 24, 8)


@pytest.mark.parametrize(("fused", "milliseconds"), [(False, 65), (True, 44)])
def test_roofline_of_a_step(fused, milliseconds):
    head = full_size("sudoku", 768)
    kernels = step_kernels(head.model.config, 768, count_parameters(head), fused=fused, plain=True)
    assert 1e3 * roofline(kernels, KNOWN_DEVICES["H100"]) == pytest.approx(milliseconds, rel=0.05)


def test_operations_of_a_layer_are_those_that_pytorch_counts():
    batch, head = 3, build_head(SIZES["small"], 3)
    config, inner = head.model.config, head.model.inner
    (block, *_) = (module for module in head.modules() if isinstance(module, Block))
    x = torch.randn(batch, 82, config.hidden_size, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            out = block(x, inner.rotary_emb())
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
    options = dict(fused=True, size=2)
    assert forward.get_total_flops() == total(layer_kernels(config, batch, backward=False, **options)).flops
    scores = 2 * batch * 82 * 82 * config.hidden_size  # computed again by FlashAttention, kept by plain attention
    assert backward.get_total_flops() + scores == total(layer_kernels(config, batch, backward=True, **options)).flops


@pytest.mark.parametrize("plain", [False, True])
def test_operations_of_a_whole_step_are_those_that_pytorch_counts(plain):
    size = SIZES["toy"]
    kind = PlainTrainer if plain else step.OurTrainer
    trainer = kind(config_of(size, 8), metadata_of(size), ONE, CPU)
    batch, head = next(random_batches(size, 8, CPU)), trainer.head
    config = head.model.config
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(batch)
    counted = total(step_kernels(config, 8, count_parameters(head), fused=False, plain=plain)).flops
    layers = config.H_layers + config.L_layers
    counted -= layers * 2 * 8 * 82 * 82 * config.hidden_size  # scores that plain attention keeps
    assert counter.get_total_flops() == pytest.approx(counted, rel=2e-3)  # it counts the Q head, and logits twice
    head.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        head.model(carry=head.initial_carry(batch), batch=batch)
    assert counter.get_total_flops() == pytest.approx(evaluation_flops(config, 8), rel=1e-3)


def test_fusing_saves_bytes_and_no_operations():
    config = full_size("sudoku", 96).model.config
    for backward in (False, True):
        fused, separate = (total(layer_kernels(config, 96, backward=backward, fused=f, size=2)) for f in (True, False))
        assert fused.flops == separate.flops
        assert fused.bytes < separate.bytes


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_plain_trainer_computes_the_same():
    """Over more steps than a benchmark checks, with halting and with rows that share an identifier."""
    size = SIZES["toy"]
    config = config_of(size, 8, "lr_warmup_steps=0", "lr=1e-3", "arch.halt_exploration_prob=0.5")
    traces, trainers = [], []
    for kind in (PlainTrainer, step.OurTrainer):
        torch.manual_seed(0)
        trainer = kind(config, metadata_of(size), ONE, CPU)
        with torch.no_grad():  # a Q head for which rows halt at different steps
            trainer.head.model.inner.q_head.weight.normal_()
            trainer.head.model.inner.q_head.bias.zero_()
        batches = random_batches(size, 8, CPU)
        traces.append([trainer.step(next(batches)) for _ in range(12)])
        trainers.append(trainer)
    for plain, ours in zip(*traces, strict=True):
        assert plain.keys() == ours.keys()
        for key in plain:
            assert ours[key] == pytest.approx(plain[key], rel=1e-5, abs=1e-7), key
    assert len({metrics["train/steps"] for metrics in traces[0]}) > 2  # rows halt at different steps
    weights = [trainer.head.state_dict() for trainer in trainers]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-5, atol=1e-6)
    assert weights[0]["model.inner.puzzle_emb.weights"].abs().sum() > 0


def test_other_losses_are_noticed():
    losses = [{"train/lm_loss": 2.0, "train/count": 1.0}] * step.CHECKED_STEPS
    other = [*losses[:-1], {"train/lm_loss": 2.0001, "train/count": 1.0}]
    baseline, way = (step.Way(None, values, [], 0) for values in (losses, other))
    assert step.check_same_losses("eager", baseline, baseline, torch.float32) == 0
    with pytest.raises(AssertionError, match="differ"):
        step.check_same_losses("eager", way, baseline, torch.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """One example a puzzle, 30 groups."""
    folder = tmp_path_factory.mktemp("sudoku")
    write_dataset(folder, "train", SIZES["sudoku"], groups=30, puzzles_a_group=7)
    return folder


def test_the_plain_loader_gives_the_same_batches(dataset):
    ours, plain = (loader.open_dataset(kind, dataset, 5, 12) for kind in (PuzzleDataset, PlainDataset))
    for _ in range(2):  # passes
        pairs = list(zip(ours, plain, strict=True))
        assert len(pairs) == 5 * 30 // 12
        for (name, batch, size), (plain_name, plain_batch, plain_size) in pairs:
            assert (name, size) == (plain_name, plain_size)
            assert batch.keys() == plain_batch.keys()
            for key in batch:
                assert batch[key].dtype == plain_batch[key].dtype
                assert torch.equal(batch[key], plain_batch[key])


def test_the_plain_sampler_draws_the_same_puzzles_where_they_have_several_examples(tmp_path):
    write_dataset(tmp_path, "train", SIZES["toy"], groups=20, puzzles_a_group=4, examples_a_puzzle=3)
    puzzles = loader.open_dataset(PuzzleDataset, tmp_path, 1, 10).sets["all"]
    streams = [sampler(loader.sampler_rng(), puzzles, 6, 10) for sampler in (sample_batches, plain_batches)]
    for (examples, ids), (plain_examples, plain_ids) in itertools.islice(zip(*streams, strict=True), 20):
        assert np.array_equal(ids, plain_ids)
        assert np.array_equal(puzzles.puzzles_of(plain_examples), plain_ids)
        assert len(set(examples)) == len(set(plain_examples))
    loader.check_same_batches(puzzles, 10)


def test_another_sampler_is_noticed(dataset, monkeypatch):
    puzzles = loader.open_dataset(PuzzleDataset, dataset, 1, 12).sets["all"]
    rngs = iter([loader.sampler_rng(), np.random.default_rng(5)])
    monkeypatch.setattr(loader, "sampler_rng", lambda: next(rngs))
    with pytest.raises(AssertionError, match="other puzzles"):
        loader.check_same_batches(puzzles, 12)


def test_ways_take_turns():
    called = []
    times = report.in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, CPU)
    assert "".join(called) in ("abbaabba", "baabbaab")
    assert [len(values) for values in times.values()] == [3, 3]


def test_a_row_says_ratio_and_quartiles():
    row = report.Result("step", "x", baseline=[0.3, 0.1, 0.2], ours=[0.1, 0.05, 0.2], target=1.5)
    line = report.table([row]).splitlines()[2]
    assert line == "| step | x | 200 ms (150–250) | 100 ms (75–150) | 2× | 1.5× |"


@pytest.mark.usefixtures("threads")
def test_evaluation_halts_at_different_steps_and_equals_the_plain_loop():
    args = evaluate.options().parse_args(["--toy", "--repeats", "1"])
    by_max, by_q = evaluate.run(args, CPU)  # which compares the metrics of the plain loop
    assert by_max.details["mean steps"] == 4
    assert 1 < by_q.details["mean steps"] < 3
    assert by_q.target == pytest.approx(4 / by_q.details["mean steps"])


@pytest.mark.slow
def test_everything_at_toy_size(tmp_path):
    """As `make bench` runs it, without the compiler."""
    out = run(
        "-m", "benchmarks", "--toy", "--device", "cpu", "--repeats", "1", "--json", tmp_path / "bench.json"
    ).stdout
    written = json.loads((tmp_path / "bench.json").read_text())
    assert {row["part"].split(",")[0] for row in written["results"]} == {"loader", "sampler", "step", "evaluate"}
    assert all(row["ratio"] > 0 for row in written["results"])
    assert written["machine"]["command"].startswith("python -m benchmarks --toy")
    assert out.count("\n| ") >= len(written["results"])


def gpu_sh(tmp_path: Path, *parts: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *parts],
        cwd=ROOT,
        env=os.environ | {"TOY": "1", "OUT": str(tmp_path / "out"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.slow
def test_gpu_script_goes_on_with_its_training_run(tmp_path):
    data = tmp_path / "out" / "sudoku"  # in place of generated Sudokus
    data.mkdir(parents=True)
    for split, groups in (("train", 64), ("test", 8)):
        write_dataset(data, split, SIZES["sudoku"], groups, puzzles_a_group=2)
    done = gpu_sh(tmp_path, "train")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out/run/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/lm_loss" in line]
    assert steps == list(range(1, 65))
    assert "stopped (" in done.stdout and "resuming" in done.stdout and "finished: " in done.stdout
    assert load_config(tmp_path / "out/run/all_config.yaml").epochs == 8
    assert (tmp_path / "out/run/step_64").exists() and "64" in (tmp_path / "out/curve.md").read_text()


def test_gpu_script_refuses_an_unknown_part(tmp_path):
    done = gpu_sh(tmp_path, "nvcc")
    assert done.returncode == 2
    assert "no part 'nvcc'; choose among: data trace" in done.stderr


def test_gpu_script_is_clean():
    tool = SHELLCHECK if SHELLCHECK.exists() else "shellcheck"
    done = subprocess.run([tool, "benchmarks/gpu.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_mistake_is_told_in_one_line(tmp_path):
    assert "all_config.yaml" in error_line("-m", "benchmarks.evaluate", "--checkpoint", tmp_path / "step_1")
