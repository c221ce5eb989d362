"""What two ranks do and find for tests/test_gradients.py: python -m tests.summing_ranks FOLDER, under torchrun."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.runs import TRAJECTORY
from tests.tiny_model import SEQ_LEN, VOCAB
from training.config import ArchConfig
from training.distributed import Ranks
from training.gradients import GradientBuckets

BATCH, SEVERAL, ONE = 8, 16 * 2**10, 2**30  # sequences of all ranks; bucket sizes
LENGTHS = (5, 7, 11, 13, 17)


def build_head(batch_size):
    torch.manual_seed(0)
    arch = ArchConfig(**TRAJECTORY["config"]["arch"])
    sizes = dict(batch_size=batch_size, seq_len=SEQ_LEN, vocab_size=VOCAB, num_puzzle_identifiers=1)
    return arch.build(**sizes).train()


def loss_of(head, rows):
    """Of these rows of the one batch. All rows start afresh, so that no random draw is in the loss."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randint(1, VOCAB, (2, BATCH, SEQ_LEN), generator=generator, dtype=torch.int32)
    batch = {"inputs": inputs[rows], "labels": labels[rows], "puzzle_identifiers": torch.zeros(BATCH).int()[rows]}
    return head(carry=head.initial_carry(batch), batch=batch).loss


def gradients_of(head):
    return {name: None if p.grad is None else p.grad.clone() for name, p in head.named_parameters()}


def vectors():
    return [nn.Parameter(torch.zeros(length)) for length in LENGTHS]


def factors(rank, step):
    """The gradients of the linear loss: small integers, whose sums are exact."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randint(-9, 10, (length,), generator=generator).float() for length in LENGTHS]


def linear_step(buckets, parameters, rank, step, used):
    """Backward through Σ parameter · factor over `used`; autograd goes from its last term to its first."""
    with buckets.summing():
        sum((parameters[i] * factors(rank, step)[i]).sum() for i in used).backward()
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def sum_of_a_model(ranks, events):
    mine = slice(ranks.rank * BATCH // 2, (ranks.rank + 1) * BATCH // 2)
    head = build_head(BATCH // 2)
    names = {p: name for name, p in head.named_parameters()}
    for p in names:
        p.register_post_accumulate_grad_hook(lambda p: events.append(names[p]))
    loss_of(head, mine).backward()
    for p in head.parameters():
        dist.all_reduce(p.grad)
    found = {"a call a parameter": gradients_of(head)}
    for size in (SEVERAL, ONE):
        buckets = GradientBuckets(head.parameters(), ranks, size)
        for _ in ("the first fills the buckets", "and the second uses them"):
            head.zero_grad()
            events.clear()
            with buckets.summing():
                loss_of(head, mine).backward()
            found.setdefault(size, []).append({"gradients": gradients_of(head), "events": list(events)})
    return found


def sum_in_another_order_on_each_rank(ranks, events):
    parameters, found = vectors(), []
    buckets = GradientBuckets(parameters, ranks, bucket_bytes=1)  # a bucket each
    for step, orders in enumerate([([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]), ([3, 0, 4, 1, 2], [2, 4, 0, 1, 3])]):
        events.clear()
        gradients = linear_step(buckets, parameters, ranks.rank, step, orders[ranks.rank])
        found.append({"gradients": gradients, "sent": list(events)})
        for p in parameters:
            p.grad = None
    return found


def sum_with_some_absent(ranks, events):
    parameters, found = vectors(), []
    parameters[4].requires_grad_(False)
    buckets = GradientBuckets(parameters, ranks, bucket_bytes=24 * 4)  # 13 + 7, 5 + 11
    for step, used in enumerate(([0, 1, 3], [0, 1, 2, 3], [1], [1], [0, 1, 2, 3])):
        events.clear()
        gradients = linear_step(buckets, parameters, ranks.rank, step, used)
        found.append({"gradients": gradients, "sent": list(events)})
        for p in parameters:
            p.grad = None
    return found


def sum_into_kept_gradients(ranks, events):
    parameters = vectors()
    buckets = GradientBuckets(parameters, ranks, bucket_bytes=24 * 4)
    linear_step(buckets, parameters, ranks.rank, 0, range(5))
    places = [p.grad.data_ptr() for p in parameters]
    for p in parameters:
        p.grad.zero_()
    parameters[2].grad.fill_(3)
    gradients = linear_step(buckets, parameters, ranks.rank, 1, [0, 1, 3, 4])
    return {"gradients": gradients, "in place": [p.grad.data_ptr() for p in parameters] == places}


def vote(ranks, events):
    me = ranks.rank
    votes = [ranks.any(False, me == 0, me == 1, True), ranks.any(me == 1), ranks.any(False)]
    ranks.barrier()
    return {"votes": votes, "object": ranks.broadcast_object({"rank": me})}


CHECKS = (
    sum_of_a_model,
    sum_in_another_order_on_each_rank,
    sum_with_some_absent,
    sum_into_kept_gradients,
    vote,
)


def work_as_a_rank(folder: Path):
    """As on a machine with GPUs, but that NCCL is PyTorch's stand-in, which sends nothing: gradients are on the CPU."""
    import torch.testing._internal.distributed.fake_pg  # makes "fake" a backend

    init, all_reduce, events, backends = dist.init_process_group, dist.all_reduce, [], []

    def init_without_gpu(backend):
        backends.append(backend)
        init(backend.replace("nccl", "fake"), timeout=timedelta(seconds=60))

    def recorded(tensor, *args, **options):
        events.append(tensor.numel())
        return all_reduce(tensor, *args, **options)

    dist.init_process_group, dist.all_reduce = init_without_gpu, recorded
    torch.cuda.set_device = lambda device: None
    ranks = Ranks.from_environment()
    ranks.connect(torch.device("cuda", ranks.local_rank))
    found = {check.__name__: check(ranks, events) for check in CHECKS}
    torch.save(found | {"backends": backends}, folder / f"{ranks.rank}.pt")
    ranks.close()


if __name__ == "__main__":  # one of the ranks
    work_as_a_rank(Path(sys.argv[1]))
