"""The benchmarks' baseline and their counts: python -m pytest tests/test_benchmarks.py"""

import copy
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as bench
from benchmarks import evaluate, family, loader, profile, report, step
from benchmarks.baseline import PlainTrainer, as_the_original, plain_batches
from benchmarks.flops import H100, roofline
from benchmarks.sizes import SIZES, build_head, config_of, random_batches, write_dataset
from models.act import ACTConfig, ACTModel, InnerNetwork
from models.losses import ACTLossHead
from puzzle_dataset import sample_batches
from tests import warm
from tests.launch import error_line
from training.distributed import Ranks
from training.flops import count_parameters, flops_per_step, step_kernels

CPU, ONE = torch.device("cpu"), Ranks(0, 1, 0)


def full_size(name: str, batch: int, *overrides: str):
    return build_head(SIZES[name], batch, torch.device("meta"), *overrides)


def layers_by_hand(size: str, batch: int, forward: int, backward: int, prefix: int = 1) -> float:
    """Operations of so many passes of a full-size layer: hidden size 512, SwiGLU of width 1,536."""
    positions, hidden, width = SIZES[size].seq_len + prefix, 512, 1536
    products = 2 * batch * positions * hidden * (4 * hidden + 3 * width)
    scores = 2 * batch * positions**2 * hidden  # q k^T, or the weights times v
    return forward * (products + 2 * scores) + backward * (2 * products + 5 * scores)


@pytest.mark.parametrize(
    ("name", "batch", "tera"), [("sudoku", 768, 28.2), ("sudoku", 96, 3.52), ("arc", 96, 48.6), ("maze", 96, 48.6)]
)
def test_operations_of_a_step(name, batch, tera):
    """The figures of the documentation, the original's whole Q target included; layers alone, counted by hand."""
    original = flops_per_step(as_the_original(full_size(name, batch)), batch)
    assert original == pytest.approx(1e12 * tera, rel=2e-3)
    assert original == pytest.approx(layers_by_hand(name, batch, 16 + 8 + 24, 8), rel=3e-3)
    assert count_parameters(full_size(name, batch)) == pytest.approx(27.3e6, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "forward", "backward", "prefix"),
    [("TRM, attention", 42, 14, 16), ("URM", 48, 24, 1), ("direct prediction", 8, 8, 1)],
)
def test_operations_of_the_family(name, forward, backward, prefix):
    """Layers counted by hand: updates of a segment × blocks, and those of its last round."""
    head = family.build(name, "sudoku")
    counted = flops_per_step(head, 1, training=False), flops_per_step(head, 1)
    assert counted[0] == pytest.approx(layers_by_hand("sudoku", 1, forward, 0, prefix), rel=3e-3)
    assert counted[1] == pytest.approx(layers_by_hand("sudoku", 1, forward, backward, prefix), rel=3e-3)


def test_what_the_first_position_saves_and_an_evaluation_costs():
    head = full_size("sudoku", 768)
    assert flops_per_step(head, 768) == pytest.approx(27.8e12, rel=2e-3)
    assert flops_per_step(head, 768, training=False) == pytest.approx(layers_by_hand("sudoku", 768, 24, 0), rel=2e-3)


def test_operations_grow_with_the_batch_exactly():
    heads = [full_size("sudoku", built) for built in (1, 4, 12)]
    for training in (True, False):
        counts = [flops_per_step(head, 12, training) for head in heads]
        assert counts == counts[:1] * 3


def test_the_least_time_of_a_step():
    """40.4 ms of the Sudoku step at batch 768, of which 35 are its operations at the peak."""
    head = full_size("sudoku", 768, "arch.forward_dtype=bfloat16")
    kernels = step_kernels(head, 768)
    assert 1e3 * roofline(kernels, head, H100) == pytest.approx(40.4, rel=0.01)
    assert roofline(kernels, head, H100) > sum(kernel.flops for kernel in kernels) / H100.flops
    bound_by_memory = H100._replace(flops=float("inf"))
    weights = 7 * 4 * count_parameters(head)
    expected = (sum(kernel.bytes for kernel in kernels) + weights) / H100.bandwidth
    assert roofline(kernels, head, bound_by_memory) == pytest.approx(expected)
    in_float32 = step_kernels(full_size("sudoku", 768, "arch.forward_dtype=float32"), 768)
    assert sum(k.bytes for k in in_float32) == pytest.approx(2 * sum(k.bytes for k in kernels), rel=0.01)


@pytest.mark.parametrize("original", [False, True])
def test_operations_of_a_real_step_are_those_that_are_counted_without_computing(original):
    """Real tensors through plain attention, whose products PyTorch counts one by one; it keeps the scores."""
    size = SIZES["toy"]
    trainer = (PlainTrainer if original else step.OurTrainer)(config_of(size, 8), size.metadata, ONE, CPU)
    batch, head = next(random_batches(size, 8, CPU)), trainer.head
    before = copy.deepcopy(head.state_dict())
    counted = flops_per_step(head, 8), flops_per_step(head, 8, training=False)
    assert head.training and all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(batch)
    scores = 2 * 8 * 82 * 82 * head.model.config.hidden_size
    assert counter.get_total_flops() == counted[0] - 2 * scores  # of two layers, computed again by a fused kernel
    head.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        head(carry=head.initial_carry(batch), batch=batch)
    assert counter.get_total_flops() == counted[1]


class Looking(InnerNetwork):
    """Another architecture: a convolution over the tokens, and attention called by names, in every step."""

    def __init__(self, config, data):
        super().__init__(config, data)
        self.embed, self.read = torch.nn.Embedding(data.vocab_size, 8), torch.nn.Linear(8, data.vocab_size)
        self.mix = torch.nn.Conv1d(8, 8, 3, padding=1)

    def initial_state(self, batch_size):
        return {"x": self.embed.weight.new_zeros(batch_size, self.positions, 8)}

    def forward(self, state, data):
        x = self.mix((state["x"] + self.embed(data["inputs"])).transpose(1, 2)).transpose(1, 2)
        x = torch.nn.functional.scaled_dot_product_attention(query=x[:, None], key=x[:, None], value=x[:, None])[:, 0]
        logits = self.read(x)
        return {"x": x.detach()}, logits, (logits[:, 0, 0].float(), logits[:, 0, 1].float())


class LookingModel(ACTModel):
    Config, Inner = ACTConfig, Looking


def test_another_architecture_is_counted():
    shape = dict(batch_size=3, seq_len=5, vocab_size=7, num_puzzle_identifiers=1)
    model = LookingModel(shape | dict(halt_max_steps=2, halt_exploration_prob=0.0))
    convolution, scores, read = 2 * 5 * 8 * 8 * 3, 2 * 5 * 5 * 8, 2 * 5 * 8 * 7  # of one sequence
    forward, backward = convolution + 2 * scores + read, 2 * convolution + 5 * scores + 2 * read
    head = ACTLossHead(model, "softmax_cross_entropy")
    assert flops_per_step(head, 4, training=False) == 4 * forward
    assert flops_per_step(head, 4) == 4 * (2 * forward + backward)  # the Q target is a forward pass


class Peeking(Looking):
    """Calls a module on a view that was made without gradients."""

    def __init__(self, config, data):
        super().__init__(config, data)
        self.gate = torch.nn.Linear(8, 8)

    def forward(self, state, data):
        tokens = self.embed(data["inputs"])
        with torch.no_grad():
            x = state["x"] + self.gate(tokens[:, 1:]).mean(1, keepdim=True)
        return super().forward({"x": x}, data)


class PeekingModel(ACTModel):
    Config, Inner = ACTConfig, Peeking


def test_a_module_on_a_view_without_gradients_is_counted():
    shape = dict(batch_size=3, seq_len=5, vocab_size=7, num_puzzle_identifiers=1)
    heads = [
        ACTLossHead(of(shape | dict(halt_max_steps=2, halt_exploration_prob=0.0)), "softmax_cross_entropy")
        for of in (LookingModel, PeekingModel)
    ]
    for training, calls in ((False, 1), (True, 2)):
        without, with_it = (flops_per_step(head, 4, training) for head in heads)
        assert with_it - without == calls * 4 * (2 * 4 * 8 * 8)


def test_compiled_blocks_are_counted_too():
    head = build_head(SIZES["toy"], 8, CPU)
    expected = flops_per_step(head, 8)
    for module in head.modules():
        module._compiled_call_impl = lambda *args: pytest.fail("compiled code ran")
    assert flops_per_step(head, 8) == expected


@pytest.mark.usefixtures("one_thread")
def test_the_plain_trainer_computes_the_same():
    """Over more steps than a benchmark checks, with halting and with rows that share an identifier."""
    size = SIZES["toy"]
    config = config_of(size, 8, "lr_warmup_steps=0", "lr=1e-3", "arch.halt_exploration_prob=0.5")
    traces, trainers = [], []
    for kind in (PlainTrainer, step.OurTrainer):
        torch.manual_seed(0)
        trainer = kind(config, size.metadata, ONE, CPU)
        with torch.no_grad():  # a Q head for which rows halt at different steps
            trainer.head.model.inner.q_head.weight.normal_()
            trainer.head.model.inner.q_head.bias.zero_()
        batches, begun = random_batches(size, 8, CPU), []
        trainer.head.model.inner.begin_step = begun.append
        traces.append([trainer.step(next(batches)) for _ in range(12)])
        assert begun == list(range(1, 13))
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
    baseline, way = (step.Way(None, values) for values in (losses, other))
    assert step.check_same_losses("eager", baseline, baseline, torch.float32) == 0
    with pytest.raises(AssertionError, match="differ"):
        step.check_same_losses("eager", way, baseline, torch.float32)


def test_a_target_is_for_the_fastest_of_ours_against_the_best_baseline():
    times = {"baseline": 3.0, "baseline, compiled": 2.0, "eager": 2.5, "blocks compiled": 1.5}
    timed = {name: step.Way(None, times=[seconds] * 3) for name, seconds in times.items()}
    assert step.judged_pair(timed, torch.device("cuda")) == ("blocks compiled", "baseline, compiled")
    assert step.judged_pair(timed, CPU) == ("blocks compiled", "baseline")
    timed["baseline, compiled"].times = [4.0]
    assert step.judged_pair(timed, torch.device("cuda")) == ("blocks compiled", "baseline")
    assert next(step.pairs(timed)) == ("eager", "baseline")


def test_the_profile_counts_what_the_device_did():
    events = [
        {"cat": "kernel", "name": "gemm", "ts": 10, "dur": 4},
        {"cat": "kernel", "name": "gemm", "ts": 20, "dur": 2},
        {"cat": "gpu_memcpy", "name": "copy", "ts": 12, "dur": 5},  # on another stream, partly at the same time
        {"cat": "kernel", "name": "inside", "ts": 13, "dur": 1},
        {"cat": "gpu_user_annotation", "name": "all of it", "ts": 0, "dur": 100},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 50},
        {"name": "process_name", "ph": "M"},
    ]
    slices = profile.device_slices({"traceEvents": events})
    assert profile.busy(slices) == 7 + 2
    spent = profile.by_name(slices)
    assert spent == {"gemm": (2, 6), "copy": (1, 5), "inside": (1, 1)}
    assert "| `gemm` | 0.4 | 0.0012 | 50.0% |" in profile.table(spent)
    assert "25.0% of a step" in profile.idle_line(0.003, 0.004)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """One example a puzzle, 30 groups."""
    folder = tmp_path_factory.mktemp("sudoku")
    write_dataset(folder, "train", SIZES["sudoku"], groups=30, puzzles_a_group=7)
    return folder


def test_the_plain_loader_gives_the_same_batches(dataset):
    plain, ours = loader.open_both("sudoku", dataset, 12, epochs=5)
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
    puzzles = loader.open_both("toy", tmp_path, 10, epochs=1)[1].sets["all"]
    streams = [sampler(loader.sampler_rng(), puzzles, 6, 10) for sampler in (sample_batches, plain_batches)]
    for (examples, ids), (plain_examples, plain_ids) in itertools.islice(zip(*streams, strict=True), 20):
        assert np.array_equal(ids, plain_ids)
        assert np.array_equal(puzzles.puzzles_of(plain_examples), plain_ids)
        assert len(set(examples)) == len(set(plain_examples))
    loader.check_same_batches(puzzles, 10)


def test_another_sampler_is_noticed(dataset, monkeypatch):
    puzzles = loader.open_both("sudoku", dataset, 12)[1].sets["all"]
    rngs = iter([loader.sampler_rng(), np.random.default_rng(5)])
    monkeypatch.setattr(loader, "sampler_rng", lambda: next(rngs))
    with pytest.raises(AssertionError, match="other puzzles"):
        loader.check_same_batches(puzzles, 12)


def test_the_port_has_none_of_our_shortcuts(monkeypatch):
    """Neither weights that are cast once a step nor our gradient of a rotation; ours has both."""
    size = SIZES["toy"]
    config = config_of(size, 8, "arch.forward_dtype=bfloat16")
    plain, ours = (kind(config, size.metadata, ONE, CPU) for kind in (PlainTrainer, step.OurTrainer))
    batch = next(random_batches(size, 8, CPU))

    def shortcut(*_):
        raise RuntimeError("a shortcut was taken")

    for name in ("models.layers._Rotary.backward", "models.token_network.weights_cast"):
        with monkeypatch.context() as patch:
            patch.setattr(name, shortcut)
            plain.step(batch)
            with pytest.raises(RuntimeError, match="a shortcut was taken"):
                ours.step(batch)


def test_ways_take_turns():
    called = []
    times = report.in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3, CPU)
    assert "".join(called) in ("abbaabba", "baabbaab")
    assert [len(values) for values in times.values()] == [3, 3]


def test_a_row_says_ratio_and_quartiles():
    row = report.Result("step", "x", baseline=[0.3, 0.1, 0.2], ours=[0.1, 0.05, 0.2], target=1.5)
    line = report.table([row]).splitlines()[2]
    assert line == "| step | x | 200 ms (150–250) | 100 ms (75–150) | 2× | 1.5× |"


@pytest.mark.usefixtures("one_thread")
def test_evaluation_halts_at_different_steps_and_equals_the_plain_loop():
    args = evaluate.options().parse_args(["--toy", "--repeats", "1"])
    by_max, by_q = evaluate.run(args, CPU)
    evaluate.refuse_differences([by_max, by_q])  # of the metrics from the plain loop's
    assert by_max.details["mean steps"] == 4
    assert 1 < by_q.details["mean steps"] == pytest.approx(4 / 3, abs=0.25)
    assert by_q.target == pytest.approx(4 / by_q.details["mean steps"])


def test_compiled_evaluation_is_compared_too(monkeypatch):
    monkeypatch.setattr(evaluate, "compile_blocks", lambda *_: True)
    args = evaluate.options().parse_args(["--toy", "--repeats", "1", "--compile"])
    assert [row.what.split(", ")[3:5] for row in evaluate.run(args, CPU)][-1] == ["halt=max", "compiled"]
    plain, ours = {"lm_loss": 4.0, "q_halt_loss": 1.0, "count": 2.0}, {"eval/lm_loss": 2.0, "eval/q_halt_loss": 3.0}
    evaluate.check_same_metrics(plain, ours, torch.float32, same_padding=False)
    with pytest.raises(AssertionError, match="q_halt_loss is 3"):
        evaluate.check_same_metrics(plain, ours, torch.float32)
    with pytest.raises(AssertionError, match="lm_loss is 2"):
        evaluate.check_same_metrics(plain, {"eval/lm_loss": 2.001}, torch.float32)


def test_times_are_shown_before_other_metrics_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "plain_evaluation", lambda *_: {"lm_loss": 9.0, "count": 1.0, "steps": 1.0})
    monkeypatch.setattr(evaluate, "evaluate_split", lambda *_, **__: [{"eval/lm_loss": 1.0, "eval/steps": 1.0,
                                                                       "eval/exact_accuracy": 0.0}])  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["evaluate", "--toy", "--device", "cpu", "--repeats", "1"])
    with pytest.raises(AssertionError, match=r"halt=max.*: eval/lm_loss is 1\.0, the baseline has 9\.0"):
        evaluate.main()
    assert "puzzles/s" in capsys.readouterr().out


@pytest.mark.apart
@pytest.mark.usefixtures("one_thread")
def test_everything_at_toy_size(tmp_path, monkeypatch, capsys):
    """As `make bench` runs it, without the compiler."""
    command = ["benchmarks", "--toy", "--device", "cpu", "--repeats", "1", "--json", str(tmp_path / "bench.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("DISABLE_COMPILE", "1")
    bench.main()
    written = json.loads((tmp_path / "bench.json").read_text())
    assert {row["part"].split(",")[0] for row in written["results"]} == {"loader", "sampler", "step", "evaluate"}
    assert all(row["ratio"] > 0 for row in written["results"])
    assert capsys.readouterr().out.count("\n| ") >= len(written["results"])


def test_a_mistake_is_told_in_one_line():
    assert "hidden_sice" in error_line("-m", "benchmarks.step", "arch.hidden_sice=3", run=warm.run)
