"""Every model variant against the original's numbers: python -m pytest tests/test_reference_models.py"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from torch import nn

from tests.reference_models import VARIANTS, Variant
from tests.rounding import Numbers, assert_equal_to_the_original
from training.step import WeightAverage


def arrays_of(prefix: str, tensors: dict) -> Numbers:
    return {f"{prefix}{key}": tensor.detach().cpu().numpy().copy() for key, tensor in tensors.items()}


def training(variant: Variant, change: Callable[[nn.Module], None]) -> Iterator[Numbers]:
    """Of each training step, and at last the weights."""
    head = variant.head()
    assert sum(p.numel() for p in head.parameters()) == variant.spec["num_params"]
    change(head)
    average = WeightAverage(head, variant.spec.get("ema_rate", 0))
    for step, out in variant.train(head, average):
        assert sorted(out.metrics) == sorted(variant.spec["metric_keys_train"])
        gradients = {} if step else {key: p.grad for key, p in head.named_parameters()}
        yield (
            {"loss": out.loss.detach().cpu().numpy()}
            | arrays_of("metrics/", out.metrics)
            | arrays_of("exactly/", {"halted": out.carry.halted, "steps": out.carry.steps})
            | arrays_of("grad0/", gradients)
        )
    averaged = average.state_dict() if "ema_rate" in variant.spec else {}
    yield arrays_of("weights/final/", head.state_dict()) | arrays_of("weights/ema/", averaged)


def original_training(variant: Variant) -> list[Numbers]:
    arrays, stages = variant.arrays, []
    for step in range(variant.spec["train_steps"]):
        metrics = zip(variant.spec["metric_keys_train"], arrays["train/metrics"][step], strict=True)
        stages.append(
            {"loss": arrays["train/loss"][step]}
            | {f"metrics/{key}": value for key, value in metrics}
            | {f"exactly/{key}": arrays[f"train/{key}"][step] for key in ("halted", "steps")}
            | (arrays_of("grad0/", variant.group("grad0/")) if step == 0 else {})
        )
    weights = [arrays_of(f"weights/{name}/", variant.group(f"{name}/")) for name in ("final", "ema")]
    return [*stages, weights[0] | weights[1]]


def evaluation(variant: Variant, change: Callable[[nn.Module], None]) -> list[Numbers]:
    head = variant.head()
    head.load_state_dict(variant.group("final/"))
    change(head)
    segments, outputs, metrics = variant.evaluate(head)
    metrics = {key: metrics[key] for key in variant.spec["metric_keys_eval"]}
    return [{"exactly/segments": np.array(segments)} | arrays_of("outputs/", outputs) | arrays_of("metrics/", metrics)]


def original_evaluation(variant: Variant) -> list[Numbers]:
    arrays = variant.arrays
    metrics = zip(variant.spec["metric_keys_eval"], arrays["eval/metrics"], strict=True)
    return [
        {"exactly/segments": arrays["eval/steps_run"]}
        | {f"outputs/{key}": arrays[f"eval/{key}"] for key in variant.outputs}
        | {f"metrics/{key}": value for key, value in metrics}
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_training_equals_the_original(name):
    variant = Variant(name)
    assert_equal_to_the_original(lambda change: training(variant, change), original_training(variant))


@pytest.mark.parametrize("name", VARIANTS)
def test_evaluation_equals_the_original(name):
    variant = Variant(name)
    assert_equal_to_the_original(lambda change: evaluation(variant, change), original_evaluation(variant))
