"""What two ranks do and report for tests/test_distributed.py: python -m tests.summing_ranks FOLDER, under torchrun."""

import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from errors import UserError
from tests.in_memory import METADATA, TINY, composed, random_batches
from tests.recording import record
from tests.runs import TRAJECTORY
from tests.tiny_model import SEQ_LEN, VOCAB
from training import step
from training.config import arch_config
from training.cuda_graph import WARM_UP, StepGraph
from training.distributed import Ranks
from training.step import create_state, train_step

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
    for number in range(STEPS):
        plain.zero_grad()
        loss_of(plain, plain, number, mine).backward()
        for p in plain.parameters():
            dist.all_reduce(p.grad)
        head.zero_grad()
        loss_of(head, summed, number, mine).backward()
        found.append({"a call a parameter": gradients_of(plain), "in training": gradients_of(head)})
    return found


def graphs(ranks):
    """Weights, puzzle embeddings, average and metrics after some steps: kernel by kernel, and as two graphs."""
    run = composed(*TINY, "lr=1e-2", "puzzle_emb_lr=1e-2", "lr_warmup_steps=3", "ema_decay=0.9", "global_batch_size=8")
    mine = slice(ranks.rank * BATCH // 2, (ranks.rank + 1) * BATCH // 2)
    found = []
    for graphed in (False, True):
        with (
            mock.patch.object(step, "uses_graph", lambda *_, graphed=graphed: graphed),
            mock.patch.object(step, "StepGraph", lambda *parts: StepGraph(*parts, record)),
        ):
            torch.manual_seed(ranks.rank)  # other weights and draws on the other rank
            state, batches = create_state(run, METADATA, ranks, torch.device("cpu")), random_batches(BATCH)
            state.head.train()
            # Two kinds of steps that take turns have graphs of their own, and what ranks exchange is in one place.
            state.head.model.inner.begin_step = lambda number: number % 2
            for _ in range(2 * WARM_UP + 6):
                batch = {name: field[mine] for name, field in next(batches).items()}
                metrics, _ = train_step(state, batch, run)
        assert len(state.graphs or ()) == 2 * graphed
        found.append(
            dict(state.head.state_dict()) | metrics | {f"ema.{k}": v for k, v in state.ema.state_dict().items()}
        )
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
        {
            "sums": sums(ranks),
            "graphs": graphs(ranks),
            "vote": vote(ranks),
            "refusal": refuse(ranks),
            "backends": backends,
        },
        folder / f"{ranks.rank}.pt",
    )
    ranks.close()


if __name__ == "__main__":  # one of the ranks
    work_as_a_rank(Path(sys.argv[1]))
