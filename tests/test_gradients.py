"""Gradients summed over the ranks in buckets, and votes: python -m pytest tests/test_gradients.py"""

import gc
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from tests.launch import run
from tests.summing_ranks import (
    BATCH,
    ONE,
    SEVERAL,
    build_head,
    factors,
    gradients_of,
    linear_step,
    loss_of,
    vectors,
)
from training.distributed import Ranks
from training.gradients import GradientBuckets

FIRST_LAYER = "model.inner.embed_tokens.embedding_weight"


def expected(step, used):
    both = zip(factors(0, step), factors(1, step), strict=True)
    return [a + b if i in used else None for i, (a, b) in enumerate(both)]


def assert_gradients_equal(got, want):
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        assert g is None or torch.equal(g, w)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    run("-m", "tests.summing_ranks", folder, ranks=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [SEVERAL, ONE])
def test_the_sums_are_those_of_plain_calls_and_of_one_process(two, size):
    head = build_head(BATCH)
    loss_of(head, slice(None)).backward()
    whole = gradients_of(head)
    assert all(gradient.any() for gradient in whole.values())
    for found in (rank["sum_of_a_model"] for rank in two):
        plain = found["a call a parameter"]
        for step in found[size]:
            assert step["gradients"].keys() == whole.keys()
            for name, gradient in step["gradients"].items():
                assert torch.equal(gradient, plain[name]), name
                torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_buckets_leave_while_the_backward_pass_goes_on(two):
    lengths = {name: p.numel() for name, p in build_head(1).named_parameters()}
    for found in (rank["sum_of_a_model"] for rank in two):
        filling, step = (step["events"] for step in found[SEVERAL])
        assert [type(event) for event in filling] == [str] * len(lengths) + [int] * (len(filling) - len(lengths))
        sent = [event for event in step if isinstance(event, int)]
        assert len(sent) > 4
        assert sum(sent) == sum(lengths.values())
        # The gradient of the first layer comes last, and only the bucket that it is in is still here.
        assert [event for event in step if isinstance(event, str)][-1] == FIRST_LAYER
        assert len([event for event in step[: step.index(FIRST_LAYER)] if isinstance(event, int)]) == len(sent) - 1
        arrived = 0
        for event in step:  # none leaves before its gradients have come
            arrived += lengths[event] if isinstance(event, str) else -event
            assert arrived >= 0
        for one_bucket in (step["events"] for step in found[ONE]):
            assert one_bucket[-1] == sum(lengths.values())
            assert all(isinstance(event, str) for event in one_bucket[:-1])


@pytest.mark.slow
def test_all_ranks_send_in_the_order_that_rank_0_saw_first(two):
    for found in (rank["sum_in_another_order_on_each_rank"] for rank in two):
        for number, step in enumerate(found):
            assert step["sent"] == [17, 13, 11, 7, 5]
            assert_gradients_equal(step["gradients"], expected(number, range(5)))


@pytest.mark.slow
def test_parameters_without_a_gradient_and_frozen_ones_are_left_out(two):
    used = ([0, 1, 3], [0, 1, 2, 3], [1], [1], [0, 1, 2, 3])
    for found in (rank["sum_with_some_absent"] for rank in two):
        for number, step in enumerate(found):
            assert step["sent"] == ([20] if used[number] == [1] else [20, 16])
            assert_gradients_equal(step["gradients"], expected(number, used[number]))


@pytest.mark.slow
def test_gradients_that_were_kept(two):
    for found in (rank["sum_into_kept_gradients"] for rank in two):
        want = expected(1, [0, 1, 3, 4])
        want[2] = torch.full((11,), 3.0)  # no gradient came: nothing is summed
        assert_gradients_equal(found["gradients"], want)
        assert found["in place"]


@pytest.mark.slow
def test_votes_objects_and_barriers_stay_off_the_device(two):
    for found in two:
        assert found["backends"] == ["cpu:gloo,cuda:nccl"]
        assert found["vote"]["votes"] == [[False, True, True, True], [True], [False]]
        assert found["vote"]["object"] == {"rank": 0}


@dataclass(frozen=True)
class Mirrored(Ranks):
    """Two ranks, the other of which does the same; its half is added when somebody waits."""

    sent: list = field(default_factory=list)

    def broadcast_object(self, value):
        return value

    def start_sum(self, values):
        self.sent.append(values)
        return self

    def wait(self):
        self.sent.pop(0).mul_(2)


def mirrored():
    return Mirrored(0, 2, 0)


def test_one_process_sums_nothing():
    parameters = vectors()
    buckets = GradientBuckets(parameters, Ranks(0, 1, 0))
    assert all(p._post_accumulate_grad_hooks is None for p in parameters)
    assert_gradients_equal(linear_step(buckets, parameters, 0, 0, range(5)), factors(0, 0))


def test_a_frozen_model_sums_nothing():
    parameters = [p.requires_grad_(False) for p in vectors()]
    with GradientBuckets(parameters, Ranks(0, 2, 0)).summing():  # without a process group
        pass


def test_one_dtype_a_bucket():
    parameters = vectors()
    parameters[1] = nn.Parameter(parameters[1].double())
    ranks = mirrored()
    buckets = GradientBuckets(parameters, ranks)
    seen = []
    for step in range(2):
        with buckets.summing():
            sum((p * x).sum() for p, x in zip(parameters, factors(0, step), strict=True)).backward()
            seen.append([(values.dtype, len(values)) for values in ranks.sent])
        assert [p.grad.dtype for p in parameters] == [p.dtype for p in parameters]
        assert_gradients_equal([p.grad.float() for p in parameters], [2 * x for x in factors(0, step)])
        for p in parameters:
            p.grad = None
    single, double = torch.float32, torch.float64
    assert seen == [[], [(single, 17 + 13 + 11), (double, 7), (single, 5)]]


def fail_after_a_backward_pass(buckets, parameters):
    with buckets.summing():
        parameters[3].sum().backward()
        parameters[3].grad = None
        raise ZeroDivisionError


def test_other_backward_passes_are_left_alone():
    """Such as the trial of training/compilation.py, before the first step and after it; and one that failed."""
    parameters = vectors()
    buckets = GradientBuckets(parameters, mirrored(), bucket_bytes=1)
    for step in range(3):
        (3 * parameters[4]).sum().backward()
        assert torch.equal(parameters[4].grad, torch.full((17,), 3.0))
        parameters[4].grad = None
        with pytest.raises(ZeroDivisionError):
            fail_after_a_backward_pass(buckets, parameters)
        buckets._ranks.sent.clear()
        got = linear_step(buckets, parameters, 0, step, range(5))
        assert_gradients_equal(got, [2 * x for x in factors(0, step)])
        for p in parameters:
            p.grad = None


def test_a_second_backward_pass_in_one_block_is_refused():
    parameters = vectors()
    buckets = GradientBuckets(parameters, mirrored())
    with buckets.summing():
        parameters[0].sum().backward()
        with pytest.raises(AssertionError, match="second backward"):
            parameters[0].sum().backward()


def test_hooks_keep_nothing_alive():
    parameters = vectors()
    buckets = GradientBuckets(parameters, mirrored())
    linear_step(buckets, parameters, 0, 0, range(5))
    gone = weakref.ref(buckets), weakref.ref(parameters[0])
    del buckets
    gc.collect()
    assert gone[0]() is None
    (2 * parameters[0]).sum().backward()  # its hook is still there and does nothing
    del parameters
    gc.collect()
    assert gone[1]() is None
