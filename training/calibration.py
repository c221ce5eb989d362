"""Whether the model's confidence, sigmoid of Q(halt), is the share of puzzles that it has right.

Puzzles are counted in bins of equal width by confidence. The expected calibration error (Guo et al. 2017,
arXiv:1706.04599, equation 3) is the difference of mean confidence and accuracy in a bin, averaged over the puzzles.
"""

import torch
from torch import Tensor

BINS = 10


def confidence_bins(q_halt: Tensor, exact: Tensor, counted: Tensor) -> Tensor:
    """(B,) logits, and (B,) bool: right, and to be counted -> (3, BINS): puzzles, summed confidence, right ones."""
    dtype = torch.float32 if q_halt.device.type == "mps" else torch.float64
    confidence = torch.sigmoid(q_halt.to(dtype)).nan_to_num(0)  # values that are no numbers give no answer
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, exact.to(dtype)]) * counted
    return torch.zeros(3, BINS, dtype=dtype, device=q_halt.device).index_add(1, place, values)


def calibration_error(bins: Tensor) -> float:
    """The expected calibration error from (3, BINS) sums, between 0 and 1; 0 without puzzles."""
    puzzles, confidence, right = bins.double().cpu()
    return ((confidence - right).abs().sum() / puzzles.sum().clamp_min(1)).item()
