"""The earlier name of evaluators/search.py, which goes with the next release.

    python -m evaluators.ensemble checkpoint=<run>/step_<n> [key=value …]

What was `copies` is `views` there, by default as many as the puzzle's kind suggests, and `max_steps` is `depth`. As
before, this runs in one process and leaves no files. The keys, as they are called now:
"""

import json
import re
import sys
import tempfile
from typing import Any

from errors import UserError, one_line_errors
from evaluators.search import SearchConfig, common_dataset, run_search, table
from training.checkpoints import open_run
from training.data import open_split
from training.distributed import Ranks, select_device
from training.metrics import start_logging
from training.options import from_cli

SUCCESSOR = "evaluators.ensemble is called evaluators.search now, its copies= views= and its max_steps= depth="
RENAMED = {"copies": "views", "max_steps": "depth", "max-steps": "depth"}


def translated(word: str) -> str:
    """An argument of earlier versions as it is written now."""
    return re.sub(r"^(--)?(copies|max[_-]steps)(?==|$)", lambda found: (found[1] or "") + RENAMED[found[2]], word)


def suggested_views(config: SearchConfig) -> int:
    """As many copies as the kind of puzzle suggests."""
    runs = [open_run(name, config.data_path)[1] for name in config.checkpoint]
    data_path = config.data_path or common_dataset(runs)
    return open_split(runs[0], config.split, Ranks(0, 1, 0), data_path=data_path).kind.copies()


def with_old_keys(report: dict[str, Any]) -> dict[str, Any]:
    """What scripts for earlier versions look for."""
    old = {"copies": report["views"], "max_steps": report["depth"]}
    return report | old | {"right": report["right"] | {"confidence": report["right"]["q"]}}


def main() -> None:
    with one_line_errors():
        config = from_cli(SearchConfig, [translated(word) for word in sys.argv[1:]], __doc__)
        print(SUCCESSOR, file=sys.stderr)
        if Ranks.from_environment().world_size > 1:
            raise UserError("this command runs in one process; start it with python, not torchrun")
        device = select_device(config.device)
        start_logging(is_main=True, as_json=config.as_json)
        views = config.views if "views" in config.model_fields_set else suggested_views(config)
        with tempfile.TemporaryDirectory() as folder:
            config = config.model_copy(update={"views": views, "output_dir": folder})
            report = with_old_keys(run_search(config, Ranks(0, 1, 0), device))
        print(json.dumps(report, indent=1, allow_nan=False) if config.as_json else table(report))


if __name__ == "__main__":
    main()
