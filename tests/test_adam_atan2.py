"""AdamATan2 against the original's numbers and a scalar loop: python -m pytest tests/test_adam_atan2.py"""

import math

import numpy as np
import pytest
import torch

from models.adam_atan2 import AdamATan2, adam_atan2, load_optimizer, portable_state
from tests.reference_models import DEVICE, REFERENCE, vectors


def compiled(params, **options):
    optimizer = AdamATan2(params, **options)
    optimizer.compile()
    return optimizer


# On CUDA the second takes the extension, where there is one.
@pytest.mark.parametrize("make", [AdamATan2, adam_atan2, pytest.param(compiled, marks=pytest.mark.apart)])
def test_eight_steps_equal_the_original(make):
    arrays = vectors(REFERENCE / "adam_atan2.npz")
    params = [torch.nn.Parameter(arrays[f"p{i}_init"]) for i in range(3)]
    optimizer = make(params, lr=0, betas=(0.9, 0.95), weight_decay=0.3)
    for t in range(8):
        for i, p in enumerate(params):
            p.grad = arrays[f"g{i}_{t}"]
        optimizer.param_groups[0]["lr"] = 1e-2 * (t + 1)
        optimizer.step()
        for i, p in enumerate(params):
            torch.testing.assert_close(p.detach(), arrays[f"p{i}_{t}"], rtol=0, atol=1e-6)


def test_equals_a_scalar_loop_with_gradients_that_come_and_go():
    """A parameter without a gradient in a step keeps its own count, moments and value."""
    rng = np.random.default_rng(0)
    beta1, beta2, lr, wd = 0.8, 0.99, 0.03, 0.2
    values = rng.normal(size=(2, 4))
    params = [torch.nn.Parameter(torch.tensor(v, device=DEVICE)) for v in values]
    optimizer = AdamATan2(params, lr=lr, betas=(beta1, beta2), weight_decay=wd)
    m, v, t = np.zeros((2, 4)), np.zeros((2, 4)), [0, 0]
    for step in range(6):
        for i in range(2):
            active = i == 0 or step % 2 == 0
            grad = rng.normal(size=4)
            params[i].grad = torch.tensor(grad, device=DEVICE) if active else None
            if not active:
                continue
            t[i] += 1
            for j in range(4):
                m[i, j] += (1 - beta1) * (grad[j] - m[i, j])
                v[i, j] += (1 - beta2) * (grad[j] ** 2 - v[i, j])
                angle = math.atan2(m[i, j], math.sqrt(v[i, j]) / math.sqrt(1 - beta2 ** t[i]))
                values[i, j] = values[i, j] * (1 - lr * wd) - lr / (1 - beta1 ** t[i]) * angle
        optimizer.step()
    np.testing.assert_allclose(torch.stack(list(params)).detach().cpu(), values, rtol=1e-12)


def test_state_survives_saving():
    def run(steps, state=None):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.ones(5, device=DEVICE))
        grads = torch.randn(6, 5, device=DEVICE)
        optimizer = AdamATan2([p])
        if state is not None:
            p.data.copy_(state[0])
            optimizer.load_state_dict(state[1])
        for t in steps:
            p.grad = grads[t]
            optimizer.step()
        return p.detach().clone(), optimizer.state_dict()

    assert torch.equal(run(range(6))[0], run(range(3, 6), run(range(3)))[0])


class Extension(torch.optim.Optimizer):
    """The CUDA extension's layout: counts are float32 tensors on the parameter's device. It computes as `AdamATan2`."""

    def __init__(self, params):
        super().__init__(params, dict(lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-2))

    def step(self):
        params = self.param_groups[0]["params"]
        ours = AdamATan2(params)
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            count = state["step"]
            assert isinstance(count, torch.Tensor) and (count.dtype, count.device) == (torch.float32, p.device)
            ours.state[p] = {**state, "step": int(count)}
            count += 1
        ours.step()


@pytest.mark.parametrize("first", [AdamATan2, Extension])
@pytest.mark.parametrize("second", [AdamATan2, Extension])
def test_a_run_goes_on_with_the_other_implementation(tmp_path, first, second):
    def run(kinds):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.ones(n)) for n in (5, 3)]
        saved = None
        for kind in kinds:
            optimizer = kind(params)
            if saved is not None:
                torch.save(saved, tmp_path / "optimizer")
                load_optimizer(optimizer, torch.load(tmp_path / "optimizer", weights_only=True))
            for _ in range(3):
                for p in params:
                    p.grad = torch.randn(p.shape)
                optimizer.step()
            counts = [state["step"] for state in optimizer.state.values()]
            saved = portable_state(optimizer)
            assert [state["step"] for state in optimizer.state.values()] == counts, "saving changed the optimiser"
            assert [type(state["step"]) for state in saved["state"].values()] == [int, int]
        return torch.cat([p.detach() for p in params])

    assert torch.equal(run([first, second]), run([AdamATan2, AdamATan2]))


@pytest.mark.parametrize("bad", [dict(lr=-1), dict(weight_decay=-1), dict(betas=(0.9, 1.0))])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AdamATan2([torch.nn.Parameter(torch.zeros(1))], **bad)
