"""Sums and votes of two ranks: python -m pytest tests/test_distributed.py"""

import pytest
import torch

from errors import UserError
from tests import warm
from tests.summing_ranks import BATCH, STEPS, build_head, gradients_of, loss_of
from training.distributed import GradientSum, Ranks

METRICS = {
    "count",
    "accuracy",
    "exact_accuracy",
    "q_halt_accuracy",
    "steps",
    "lm_loss",
    "q_halt_loss",
    "q_continue_loss",
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    warm.run("-m", "tests.summing_ranks", folder, ranks=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_gradients_are_sums_over_the_ranks_bit_for_bit(found):
    for first, second in zip(found[0]["sums"], found[1]["sums"], strict=True):
        assert len(first["in training"]) > 5
        for name, gradient in first["in training"].items():
            assert torch.equal(gradient, first["a call a parameter"][name]), name
            assert torch.equal(gradient, second["in training"][name]), name


def test_the_sums_are_the_gradients_of_the_whole_batch(found):
    head = build_head(BATCH)
    for step in range(STEPS):
        head.zero_grad()
        loss_of(head, head, step, slice(None)).backward()
        for name, gradient in gradients_of(head).items():
            torch.testing.assert_close(found[0]["sums"][step]["in training"][name], gradient, rtol=1e-4, atol=1e-5)


def test_a_step_as_two_graphs_is_the_plain_step_bit_for_bit(found):
    """Only the ranks' own metrics differ between them."""
    (plain, graphed), (other, _) = (rank["graphs"] for rank in found)
    assert any(name.endswith("puzzle_emb.weights") for name in plain) and any(name.startswith("ema.") for name in plain)
    for name, value in plain.items():
        assert torch.equal(graphed[name], value), name
        assert torch.equal(other[name], value) or name in METRICS, name


def test_a_weight_without_a_gradient_cannot_be_summed_apart():
    head = build_head(BATCH)
    with pytest.raises(UserError, match=r"leaves weights without a gradient.*use cuda_graph=off"):
        GradientSum(head).collect()


def test_votes_and_objects_go_by_way_of_the_cpu(found):
    for rank in found:
        assert rank["vote"] == {"votes": [[False, True, True, True], [True], [False]], "object": {"rank": 0}}
        assert rank["backends"] == ["cpu:gloo,cuda:nccl"]


def test_what_rank_0_refuses_ends_every_rank_and_is_said_once(found):
    assert [rank["refusal"] for rank in found] == [["UserError('no')", 0], ["SystemExit(2)", 0]]


def test_one_process_and_frozen_weights_need_no_sum():
    head = build_head(BATCH)
    assert Ranks(0, 1, 0).sum_gradients_of(head) is head
    assert Ranks(0, 2, 0).sum_gradients_of(head.requires_grad_(False)) is head
