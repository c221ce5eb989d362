"""Reading the reference vectors of the model variants, and stepping a model through them.

The tests that use tests/reference run on HRM_TEST_DEVICE, by default the CPU, with the same tolerances everywhere.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch

from models.adam_atan2 import AdamATan2
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1
from models.losses import ACTLossHead
from models.sparse_embedding import SparseSignSGD

REFERENCE = Path(__file__).parent / "reference"
DEVICE = torch.device(os.environ.get("HRM_TEST_DEVICE", "cpu"))
torch.set_float32_matmul_precision("highest")  # the reference is float32; some containers turn TF32 on
VARIANTS = sorted(path.stem.removeprefix("model_") for path in REFERENCE.glob("model_*.npz"))


def vectors(path: Path, device: torch.device = DEVICE) -> dict[str, torch.Tensor]:
    """The arrays of an .npz file."""
    return {key: torch.from_numpy(value).to(device) for key, value in np.load(path).items()}


class Variant:
    """One `model_<variant>.json` / `.npz` pair."""

    def __init__(self, name: str):
        self.spec = json.loads((REFERENCE / f"model_{name}.json").read_text())
        self.arrays = np.load(REFERENCE / f"model_{name}.npz")

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            key.removeprefix(prefix): torch.from_numpy(self.arrays[key]).to(DEVICE)
            for key in self.arrays
            if key.startswith(prefix)
        }

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        return self.group(f"batch{step}/")

    def head(self, **changes) -> ACTLossHead:
        with DEVICE:
            model = HierarchicalReasoningModel_ACTV1(self.spec["config"] | changes)
        head = ACTLossHead(model, self.spec["loss_type"])
        head.load_state_dict(self.group("init/"))
        return head

    def optimizers(self, head: ACTLossHead) -> list[tuple[torch.optim.Optimizer, float]]:
        """(optimiser, base lr), the embedding's first, as in training."""
        spec = self.spec
        dense = AdamATan2(head.parameters(), lr=0, betas=spec["betas"], weight_decay=spec["weight_decay"])
        pairs = [(dense, spec["lr"])]
        if head.model.puzzle_emb is not None:
            sparse = SparseSignSGD(
                head.model.puzzle_emb.buffers(), world_size=1, lr=0, weight_decay=spec["puzzle_emb_weight_decay"]
            )
            pairs.insert(0, (sparse, spec["puzzle_emb_lr"]))
        return pairs

    def train(self, head: ACTLossHead):
        """Run the training steps; after each, yield (step, output) with the gradients of that step still in place."""
        head.train()
        carry, optimizers = None, self.optimizers(head)
        for step in range(self.spec["train_steps"]):
            batch = self.batch(step)
            carry = head.initial_carry(batch) if carry is None else carry
            out = head(carry=carry, batch=batch, return_keys=[])
            carry = out.carry
            (out.loss / self.spec["config"]["batch_size"]).backward()
            yield step, out
            for optimizer, base_lr in optimizers:
                optimizer.param_groups[0]["lr"] = base_lr * (step + 1) / self.spec["train_steps"]
                optimizer.step()
                optimizer.zero_grad()
