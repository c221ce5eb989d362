"""Reading the reference vectors of the model variants, and stepping a model through them.

The tests that use tests/reference run on HRM_TEST_DEVICE, by default the CPU; tests/rounding.py has the tolerances.
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
from models.trm import TinyRecursiveModel
from models.urm import UniversalReasoningModel
from training.step import WeightAverage

REFERENCE = Path(__file__).parent / "reference"
DEVICE = torch.device(os.environ.get("HRM_TEST_DEVICE", "cpu"))
torch.set_float32_matmul_precision("highest")  # the reference is float32; some containers turn TF32 on
FILES = {path.stem.removeprefix("model_"): path for path in sorted(REFERENCE.glob("**/model_*.npz"))}
VARIANTS = list(FILES)

# By the first word of a variant's name; the others are HRM's
FAMILY = {"trm": TinyRecursiveModel, "eqr": TinyRecursiveModel, "urm": UniversalReasoningModel}
# What the originals call their options: ours. None: what they have no choice of here
TRANSLATED = {
    "lambda_": "damping", "noise_scale": "noise", "loops": "halt_max_steps", "H_layers": None, "no_ACT_continue": None,
}  # fmt: skip
UNSAID = {"num_puzzle_identifiers": 1, "halt_exploration_prob": 0.0}  # in the configs of EqR and URM


def vectors(path: Path, device: torch.device = DEVICE) -> dict[str, torch.Tensor]:
    """The arrays of an .npz file."""
    return {key: torch.from_numpy(value).to(device) for key, value in np.load(path).items()}


class Variant:
    """One `model_<variant>.json` / `.npz` pair."""

    def __init__(self, name: str):
        self.spec = json.loads(FILES[name].with_suffix(".json").read_text())
        with np.load(FILES[name]) as arrays:  # which would unpack an array anew at each look
            self.arrays = dict(arrays)
        self.model_class = FAMILY.get(name.split("_")[0], HierarchicalReasoningModel_ACTV1)
        self.config = self.spec["config"]
        if self.model_class is not HierarchicalReasoningModel_ACTV1:
            translated = {TRANSLATED.get(key, key): value for key, value in self.config.items()}
            self.config = UNSAID | {key: value for key, value in translated.items() if key is not None}

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        return {
            key.removeprefix(prefix): torch.tensor(self.arrays[key], device=DEVICE)
            for key in self.arrays
            if key.startswith(prefix)
        }

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        return self.group(f"batch{step}/")

    def head(self, **changes) -> ACTLossHead:
        with DEVICE:
            model = self.model_class(self.config | changes)
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

    def train(self, head: ACTLossHead, average: WeightAverage | None = None):
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
            if average is not None:
                average.update()

    def evaluate(self, head: ACTLossHead):
        """-> (segments run, outputs, metrics) of the reference's evaluation, all segments of its one batch."""
        head.eval()
        batch = {key: value for key, value in self.group("eval/").items() if key in self.batch(0)}
        carry, segments = head.initial_carry(batch), 0
        with torch.inference_mode():
            while True:
                carry, _, metrics, outputs, all_finished = head(carry=carry, batch=batch, return_keys=self.outputs)
                segments += 1
                if all_finished:
                    return segments, outputs, metrics

    @property
    def outputs(self) -> list[str]:
        """Those that the reference's evaluation has."""
        return [key for key in ("logits", "q_halt_logits", "q_continue_logits") if f"eval/{key}" in self.arrays]
