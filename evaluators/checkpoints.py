"""A checkpoint's run and the puzzles it is tried on, for the evaluators that run the model themselves."""

from errors import UserError
from puzzle_dataset import PuzzleDataset
from training.config import PretrainConfig
from training.data import open_split
from training.distributed import Ranks


def open_to_answer(
    run: PretrainConfig, split: str, *, data_path: str | None, batch_size: int, max_examples: int | None
) -> PuzzleDataset:
    """A split in order, in one process; `max_examples` draws what evaluate.py draws."""
    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        raise UserError("this command runs in one process; start it with python, not torchrun")
    batch_size = min(batch_size, max_examples or batch_size)
    dataset = open_split(
        run, split, ranks, data_path=data_path, global_batch_size=batch_size, max_examples=max_examples
    )
    if not dataset.num_examples():
        raise UserError(f"{dataset.config.dataset_path}/{split} holds no examples")
    return dataset
