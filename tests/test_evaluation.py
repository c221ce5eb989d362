"""The rules of halting against a plain loop: python -m pytest tests/test_evaluation.py"""

import numpy as np
import pytest
import torch

from errors import UserError
from tests.recording import record
from tests.runs import TRAJECTORY, of_the_original
from tests.tiny_model import EXAMPLES, build_model, every_step, in_two_sets, open_test_split
from training.cuda_graph import WARM_UP, Graph
from training.distributed import Ranks
from training.evaluation import choose_batch_size, evaluate_split, rows_at_a_time
from training.predictions import PredictionWriter
from training.reasoning import Reasoner

ONE, CPU = Ranks(0, 1, 0), torch.device("cpu")
SAVED = ["labels", "logits", "q_halt_logits", "q_continue_logits"]


def evaluate(head, dataset=None, save=(), **options):
    return evaluate_split(head, dataset or open_test_split(), ONE, CPU, list(save), **options)


def compact(head, prefix, dataset=None, halt="q", **options):
    """-> (metrics, field -> array)."""
    dataset, max_steps = dataset or open_test_split(), head.model.config.halt_max_steps
    with PredictionWriter(prefix, dataset, ONE, checkpoint="x", halt=halt, max_steps=max_steps, **options) as writer:
        metrics, _ = evaluate(head, dataset, halt=halt, writer=writer)
    return metrics, {field: np.load(writer.place / f"{field}.0.npy") for field in writer.row_types}


def own_last_step(steps, stop):
    """Each row's outputs of its own last step."""
    return {key: value[np.arange(len(stop)), stop - 1] for key, value in steps.items() if key.endswith("logits")}


def expected_metrics(labels, logits, q_halt, stop):
    """By numpy alone, over rows that are all labelled."""
    s = np.where(logits < 0, 1 / (1 - logits.astype(float)), logits.astype(float) + 1)
    picked = np.take_along_axis(s / s.sum(-1, keepdims=True), labels[..., None], -1)[..., 0]
    right = logits.argmax(-1) == labels
    exact = right.all(1)
    return {
        "eval/accuracy": right.mean(),
        "eval/exact_accuracy": exact.mean(),
        "eval/lm_loss": -np.log(picked).mean(1).mean(),
        "eval/q_halt_accuracy": ((q_halt >= 0) == exact).mean(),
        "eval/q_halt_loss": (np.logaddexp(0, q_halt) - q_halt * exact).mean(),
        "eval/steps": stop.mean(),
    }


def expected_ece(labels, outputs):
    """Bin by bin, as the definition reads."""
    confidence = 1 / (1 + np.exp(-outputs["q_halt_logits"].astype(float)))
    exact, error = (outputs["logits"].argmax(-1) == labels).all(1), 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - exact[inside].mean())
    return error


@pytest.fixture(scope="module")
def halting():
    """(model, its every step, after which step each example stops)"""
    head = build_model(max_steps=6, halting=True)
    steps = every_step(head)
    ahead = steps["q_halt_logits"] - steps["q_continue_logits"]
    assert np.abs(ahead).min() > 0.05  # no rounding decides when a row stops
    stop = np.array([next((n for n in range(1, 6) if row[n - 1] > 0), 6) for row in ahead])
    assert set(stop) == {1, 2, 3, 4, 5, 6}
    assert ahead[stop == 6][:, -1].min() < 0 < ahead[:, -1].max()  # some never want to stop
    return head, steps, stop


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_halt_q_equals_each_row_at_its_own_last_step(halting, tmp_path, batch_size):
    head, steps, stop = halting
    metrics, rows = compact(head, tmp_path / "step_1", open_test_split(global_batch_size=batch_size), logits=True)
    expected = own_last_step(steps, stop)
    np.testing.assert_array_equal(rows["examples"], np.arange(EXAMPLES))
    np.testing.assert_array_equal(rows["steps"], stop)
    np.testing.assert_array_equal(rows["answers"], expected["logits"].argmax(-1))
    for key in expected:
        np.testing.assert_allclose(rows[key], expected[key], rtol=0, atol=2e-5)
    want = expected_metrics(steps["labels"], expected["logits"], expected["q_halt_logits"], stop)
    want["eval/ece"] = expected_ece(steps["labels"], expected)
    assert metrics == {key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in want.items()}


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_one_pass_measures_both_rules(halting, batch_size):
    """Also where a batch is padded: 20 examples fill none of 8 or 32."""
    head, steps, stop = halting
    metrics, _ = evaluate(head, open_test_split(global_batch_size=batch_size))
    at_halt = own_last_step(steps, stop)
    of_q = expected_metrics(steps["labels"], at_halt["logits"], at_halt["q_halt_logits"], stop)
    of_q["eval/ece"] = expected_ece(steps["labels"], at_halt)
    measured = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "ece")
    want = {f"eval/halt_q/{key}": pytest.approx(of_q[f"eval/{key}"], rel=1e-5) for key in measured}
    assert {key: value for key, value in metrics.items() if "halt_q" in key} == want
    at_end = own_last_step(steps, np.full(EXAMPLES, 6))
    assert metrics["eval/ece"] == pytest.approx(expected_ece(steps["labels"], at_end), rel=1e-5)
    of_max = expected_metrics(steps["labels"], at_end["logits"], at_end["q_halt_logits"], np.full(EXAMPLES, 6.0))
    assert {key: metrics[key] for key in of_max if key != "eval/q_halt_loss"} == {  # which counts padding too
        key: pytest.approx(value, rel=1e-5) for key, value in of_max.items() if key != "eval/q_halt_loss"
    }


@pytest.mark.parametrize("halt", ["max", "q"])
def test_answers_by_step(halting, tmp_path, halt):
    head, steps, stop = halting
    _, rows = compact(head, tmp_path / "step_1", halt=halt, answers_by_step=True)
    answers = steps["logits"].argmax(-1)  # (n, steps, S)
    last = np.minimum(np.arange(6), (stop if halt == "q" else np.full(EXAMPLES, 6))[:, None] - 1)
    np.testing.assert_array_equal(rows["answers_by_step"], np.take_along_axis(answers, last[..., None], 1))
    np.testing.assert_array_equal(rows["answers"], rows["answers_by_step"][:, -1])


def test_rows_that_stopped_and_padding_cost_nothing(halting, monkeypatch):
    head, _, stop = halting
    sizes, forward = [], head.model.inner.forward
    monkeypatch.setattr(
        head.model.inner, "forward", lambda state, data: sizes.append(len(data["inputs"])) or forward(state, data)
    )
    evaluate(head, halt="q")
    assert sum(sizes) == stop.sum()
    sizes.clear()
    evaluate(head, halt="max")
    assert sizes == [8] * 3 * 6


def test_a_batch_of_padding_only_counts_nothing(halting):
    """As the last rank gets where the examples do not reach it."""
    head, _, _ = halting
    _, batch, _ = list(open_test_split(rank=3, ranks=4))[-1]
    assert (batch["labels"] == -100).all()
    with torch.inference_mode():
        done = Reasoner(head.model, "q").run(batch, 0, by_step=True)
        _, metrics = head.score(done.outputs, done.data["labels"], done.steps, torch.ones(0, dtype=torch.bool))
    assert all(value == 0 for value in metrics.values())
    assert metrics.keys() >= {"count", "accuracy", "lm_loss", "q_halt_loss", "steps"}
    assert done.outputs["logits"].shape == (0, 16, 6)


def test_recorded_reasoning_steps_are_the_plain_ones(halting, monkeypatch):
    """Batch after batch, with a recorder in place of a CUDA graph (tests/recording.py)."""
    head, steps, _ = halting
    calls, forward = [], head.model.inner.forward
    monkeypatch.setattr(head.model.inner, "forward", lambda *inputs: calls.append(1) or forward(*inputs))
    recorded = Reasoner(head.model, graph=Graph("a reasoning step", record))
    answers, batches = [], list(open_test_split())
    with torch.inference_mode():
        for _, batch, size in batches:
            done = recorded.run(batch, size, by_step=True)
            assert (done.steps == 6).all()
            assert done.data is batch
            answers.append(done.answers_by_step[:size].clone())
            last = done.outputs["logits"][:size].clone()
    assert len(calls) == WARM_UP + 1
    for (_, batch, _), (_, untouched, _) in zip(batches, open_test_split(), strict=True):
        assert all(torch.equal(batch[field], untouched[field]) for field in untouched)
    np.testing.assert_array_equal(torch.cat(answers), steps["logits"].argmax(-1))
    np.testing.assert_allclose(last, steps["logits"][-len(last) :, -1], rtol=0, atol=2e-5)


def test_max_steps_goes_on_beyond_the_trained_number(halting):
    _, steps, _ = halting
    metrics, saved = evaluate(build_model(max_steps=9), save=SAVED)
    logits = every_step(build_model(max_steps=9))["logits"]
    np.testing.assert_allclose(saved["logits"][:EXAMPLES], logits[:, -1], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(logits[:, :6], steps["logits"])  # the steps before are the same
    assert np.abs(logits[:, -1] - logits[:, 3]).max() > 0.1  # and it does go on
    assert metrics["eval/steps"] == 9


def test_halt_max_gives_the_original_numbers():
    metrics, saved = evaluate(build_model(), save=SAVED)
    expected = TRAJECTORY["eval"][-1]["all"]
    assert of_the_original(metrics) == {
        f"eval/{key}": pytest.approx(value, rel=1e-4) for key, value in expected.items()
    }
    assert saved["logits"].shape == (24, 16, 6)  # padding is kept
    _, cut = evaluate(build_model(), save=SAVED, halt="q")
    assert cut["logits"].shape == (EXAMPLES, 16, 6)


@pytest.mark.parametrize("halt", ["max", "q"])
def test_sets_are_counted_apart_and_together(halting, tmp_path, halt):
    head, steps, stop = halting
    stop = stop if halt == "q" else np.full(EXAMPLES, 6)
    dataset = open_test_split(in_two_sets(tmp_path / "data"))
    metrics, rows = compact(head, tmp_path / "step_1", dataset, halt=halt)
    exact = (own_last_step(steps, stop)["logits"].argmax(-1) == steps["labels"]).all(1)
    found = [metrics[f"eval/{name}exact_accuracy"] for name in ("", "a/", "b/")]
    np.testing.assert_allclose(found, [exact.mean(), exact[:13].mean(), exact[13:].mean()], rtol=1e-6)
    np.testing.assert_array_equal(rows["examples"], np.arange(EXAMPLES))
    np.testing.assert_array_equal(rows["steps"], stop)


def test_a_q_that_is_not_a_number_runs_to_the_end():
    head = build_model()
    head.model.inner.q_head.bias.data.fill_(torch.nan)
    metrics, _ = evaluate(head, halt="q")
    assert metrics["eval/steps"] == 4


def test_the_rows_of_a_batch_are_those_that_fit():
    """Of 17 tokens each: up to 131,072 in all, and never fewer than in training."""
    assert [rows_at_a_time(17, 8, limit) for limit in (10**6, 500, 497, 4)] == [7704, 504, 504, 8]
    assert rows_at_a_time(17, 10_000, 500) == 10_000


def test_the_batch_size_of_an_evaluation_can_be_chosen(halting):
    head, _, _ = halting
    seen = []
    for wanted, size in ((None, 8), (5, 5), (EXAMPLES, EXAMPLES)):
        dataset = open_test_split()
        choose_batch_size(wanted, dataset, head, ONE, CPU)
        assert {len(batch["inputs"]) for _, batch, _ in dataset} == {size}
        metrics, _ = evaluate(head, dataset)
        seen.append({key: value for key, value in metrics.items() if key != "eval/q_halt_loss"})  # counts padding
    for metrics in seen[1:]:
        assert metrics == pytest.approx(seen[0], rel=1e-5)
    with pytest.raises(UserError, match="global_batch_size=5 is not divisible by the 2 ranks"):
        choose_batch_size(5, open_test_split(ranks=2), head, Ranks(0, 2, 0), CPU)


def test_a_graph_without_cuda_is_refused(halting):
    head, _, _ = halting
    with pytest.raises(UserError, match="cuda_graph=on needs a CUDA device, not cpu"):
        evaluate(head, cuda_graph="on")


@pytest.mark.parametrize("halt", ["max", "q"])
@pytest.mark.parametrize("where", ["start", "segment"])
def test_a_network_that_draws_must_say_so(monkeypatch, halt, where):
    """In a start or in a later segment; else training would go on with other numbers after an evaluation."""
    head = build_model()
    inner, drawn = head.model.inner, []
    method = {"start": "initial_state", "segment": "think"}[where]
    original = getattr(inner, method)

    def drawing(*args, **kwargs):
        drawn.append(1)
        if where == "start" or len(drawn) == 2:
            torch.rand(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(inner, method, drawing)
    with pytest.raises(
        ValueError, match=f"{type(inner).__name__} draws random numbers in an evaluation; set self.draw"
    ):
        evaluate(head, halt=halt)
    inner.draws, before = True, torch.get_rng_state()
    evaluate(head, halt=halt)
    assert torch.equal(torch.get_rng_state(), before)
