"""Read a whole dataset and compare it with what was built: python -m dataset.check --dataset data/sudoku-4x4

Whoever opens a dataset compares samples of its arrays, which finds another build at once and damage to a single byte of
a large file by luck only (dataset/format.py). This command reads every byte, at about 1 GB a second.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from dataset.arrays import data_digest, map_array
from dataset.cli import run_builder
from dataset.format import REBUILD, array_files, check_totals, load_metadata, load_set, read_identifiers
from errors import UserError


class CheckConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dataset: Path = Field(description="folder of the dataset")


def check_split(folder: Path) -> str:
    """What was found in a line; raises `UserError` for what is damaged."""
    metadata = load_metadata(folder)
    recorded = metadata.digests or {}
    files = array_files(folder, metadata)
    size, damaged, unknown = 0, [], []
    for path in tqdm(files, desc=folder.name, unit=" arrays", delay=0.5, leave=False):
        array = map_array(path, REBUILD)
        size += array.nbytes
        if path.name not in recorded:
            unknown.append(path.name)
        elif data_digest(array) != recorded[path.name][0]:
            damaged.append(path.name)
    if damaged:
        raise UserError(f"{folder}: not what was built (other digests): {', '.join(damaged)}; {REBUILD}")
    check_totals([load_set(folder, name, metadata) for name in metadata.sets], folder, metadata)
    found = f"{folder.name}: {len(files)} arrays, {size:,} bytes, "
    if len(unknown) == len(files):
        return found + "in order, but built when no digests were recorded: whether they are what was built is unknown"
    return found + "as built" + (f", except that no digest is known of {', '.join(unknown)}" if unknown else "")


def check(config: CheckConfig) -> None:
    """Read a whole dataset and compare every byte with the digests that its builder recorded."""
    splits = sorted(path.parent for path in config.dataset.glob("*/dataset.json"))
    if not splits:
        load_metadata(config.dataset / "train")  # says what is missing
    print(f"identifiers.json: {len(read_identifiers(config.dataset)):,} names")
    for folder in splits:
        print(check_split(folder), flush=True)


if __name__ == "__main__":
    run_builder(check)
