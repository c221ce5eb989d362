"""AdamATan2 against the original's numbers and a scalar loop: python -m pytest tests/test_adam_atan2.py"""

import math

import numpy as np
import pytest
import torch

from models.adam_atan2 import AdamATan2, adam_atan2
from tests.reference_models import DEVICE, REFERENCE, vectors


@pytest.mark.parametrize("make", [AdamATan2, adam_atan2])  # on CUDA the second takes the extension, where there is one
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


@pytest.mark.parametrize("bad", [dict(lr=-1), dict(weight_decay=-1), dict(betas=(0.9, 1.0))])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        AdamATan2([torch.nn.Parameter(torch.zeros(1))], **bad)
