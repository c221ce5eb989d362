"""What two ranks do and report for tests/test_distributed.py: python -m tests.summing_ranks FOLDER, under torchrun."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from errors import UserError
from tests.runs import TRAJECTORY
from tests.tiny_model import SEQ_LEN, VOCAB
from training.config import arch_config
from training.distributed import Ranks

BATCH, STEPS = 8, 3  # sequences of all ranks


def build_head(batch_size, seed=0):
    torch.manual_seed(seed)
    arch = arch_config(TRAJECTORY["config"]["arch"])
    return arch.build(batch_size=batch_size, seq_len=SEQ_LEN, vocab_size=VOCAB, num_puzzle_identifiers=1).train()


def loss_of(head, summed, step, rows):
    """Of these rows of a step's batch. All rows start afresh, so that no random draw is in the loss."""
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randint(1, VOCAB, (2, BATCH, SEQ_LEN), generator=generator, dtype=torch.int32)
    batch = {"inputs": inputs[rows], "labels": labels[rows], "puzzle_identifiers": torch.zeros(BATCH).int()[rows]}
    return summed(carry=head.initial_carry(batch), batch=batch).loss


def gradients_of(head):
    return {name: p.grad.clone() for name, p in head.named_parameters()}


def sums(ranks):
    """Of each step: by a call a parameter, and as training has them; and the ids that are not parameters."""
    mine = slice(ranks.rank * BATCH // 2, (ranks.rank + 1) * BATCH // 2)
    plain, head = build_head(BATCH // 2), build_head(BATCH // 2, seed=ranks.rank)  # other weights on the other rank
    ranks.broadcast_module(head)
    summed = ranks.sum_gradients_of(head)
    found = []
    for step in range(STEPS):
        plain.zero_grad()
        loss_of(plain, plain, step, mine).backward()
        for p in plain.parameters():
            dist.all_reduce(p.grad)
        head.zero_grad()
        loss_of(head, summed, step, mine).backward()
        found.append({"a call a parameter": gradients_of(plain), "in training": gradients_of(head)})
    return found


def vote(ranks):
    me = ranks.rank
    votes = [ranks.any(False, me == 0, me == 1, True), ranks.any(me == 1), ranks.any(False)]
    ranks.barrier()
    return {"votes": votes, "object": ranks.broadcast_object({"rank": me})}


def refuse(ranks) -> list:
    """What a refusal by rank 0 is on this rank, and that the ranks agree again afterwards."""

    def no():
        raise UserError("no")

    try:
        ranks.from_main(no)
    except (UserError, SystemExit) as end:
        return [repr(end), ranks.from_main(lambda: ranks.rank)]
    raise AssertionError("not refused")


def work_as_a_rank(folder: Path):
    """As on a machine with GPUs, but that NCCL is PyTorch's stand-in, which sends nothing: gradients are on the CPU."""
    import torch.testing._internal.distributed.fake_pg  # makes "fake" a backend

    init, backends = dist.init_process_group, []

    def init_without_gpu(backend):
        backends.append(backend)
        init(backend.replace("nccl", "fake"), timeout=timedelta(seconds=60))

    dist.init_process_group = init_without_gpu
    torch.cuda.set_device = lambda device: None
    ranks = Ranks.from_environment()
    ranks.connect(torch.device("cuda", ranks.local_rank))
    torch.save(
        {"sums": sums(ranks), "vote": vote(ranks), "refusal": refuse(ranks), "backends": backends},
        folder / f"{ranks.rank}.pt",
    )
    ranks.close()


if __name__ == "__main__":  # one of the ranks
    work_as_a_rank(Path(sys.argv[1]))
