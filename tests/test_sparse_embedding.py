"""The puzzle embedding and its sign-SGD: python -m pytest tests/test_sparse_embedding.py"""

import pytest
import torch

from models.sparse_embedding import SparseEmbedding, SparseSignSGD
from tests.reference_models import DEVICE, REFERENCE, vectors
from tests.warm import run
from training.distributed import Ranks


def run_reference(rank=0, world_size=1, device=DEVICE):
    """The four reference steps on this rank's share of the rows; -> the table after each, and the reference's arrays"""
    arrays = vectors(REFERENCE / "sparse_sign_sgd.npz", device)
    table = arrays["weights_init"]
    rows = len(arrays["ids0"]) // world_size
    mine = slice(rank * rows, (rank + 1) * rows)
    with device:
        embedding = SparseEmbedding(*table.shape, batch_size=rows, init_std=0, cast_to=torch.float32)
    embedding.weights.copy_(table)
    optimizer = SparseSignSGD(embedding.buffers(), world_size=world_size, lr=0.05, weight_decay=0.4)
    tables = []
    for t in range(4):
        out = embedding(arrays[f"ids{t}"][mine])
        (out * arrays[f"grad{t}"][mine]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        tables.append(embedding.weights.clone())
    return tables, arrays


def check_reference(*rank_and_place):
    tables, arrays = run_reference(*rank_and_place)
    for t, table in enumerate(tables):
        torch.testing.assert_close(table, arrays[f"weights{t}"], rtol=0, atol=1e-6)
    assert torch.equal(tables[-1][5], arrays["weights_init"][5])


def test_equals_the_original():
    check_reference()


@pytest.mark.apart
def test_two_ranks_equal_the_original():
    done = run("-m", "tests.test_sparse_embedding", ranks=2)
    assert done.stdout.count("equal") == 2


def test_update_equals_a_dense_loop():
    torch.manual_seed(0)
    table, lr, wd = torch.randn(50, 8, device=DEVICE), 0.01, 0.3
    with DEVICE:
        embedding = SparseEmbedding(50, 8, batch_size=64, init_std=0, cast_to=torch.float32)
    embedding.weights.copy_(table)
    optimizer = SparseSignSGD(embedding.buffers(), world_size=1, lr=lr, weight_decay=wd)
    for _ in range(5):
        ids = torch.randint(0, 30, (64,), dtype=torch.int32, device=DEVICE)
        grads = torch.randn(64, 8, device=DEVICE)
        (embedding(ids) * grads).sum().backward()
        for row in set(ids.tolist()):
            total = sum(g for i, g in zip(ids.tolist(), grads, strict=True) if i == row)
            table[row] = table[row] * (1 - lr * wd) - lr * total.sign()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(embedding.weights, table, rtol=0, atol=1e-6)
    assert torch.equal(embedding.weights[30:], table[30:])


def test_only_the_table_is_saved_and_evaluation_takes_any_batch():
    embedding = SparseEmbedding(10, 4, batch_size=3, init_std=1, cast_to=torch.bfloat16)
    assert list(embedding.state_dict()) == ["weights"]
    assert list(embedding.parameters()) == []
    embedding.eval()
    ids = torch.tensor([7, 7, 1, 0, 9])
    assert torch.equal(embedding(ids), embedding.weights[ids].bfloat16())


def test_a_moved_embedding_still_trains():
    embedding = SparseEmbedding(10, 4, batch_size=2, init_std=1, cast_to=torch.float64).double()
    optimizer = SparseSignSGD(embedding.buffers(), world_size=1, lr=0.5, weight_decay=0)
    before = embedding.weights.clone()
    embedding(torch.tensor([3, 3])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(embedding.weights[3], before[3] - 0.5)


def test_negative_settings_are_refused():
    embedding = SparseEmbedding(2, 2, batch_size=1, init_std=0, cast_to=torch.float32)
    with pytest.raises(ValueError, match="negative"):
        SparseSignSGD(embedding.buffers(), world_size=1, lr=-1, weight_decay=0)


if __name__ == "__main__":  # one rank of the test above
    ranks = Ranks.from_environment()
    ranks.connect(torch.device("cpu"))
    check_reference(ranks.rank, ranks.world_size, torch.device("cpu"))
    ranks.close()
    print("equal")
