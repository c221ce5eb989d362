"""How OpenMP's threads are used. Import this before torch, which reads these settings as it loads.

A waiting thread spins for 20,000 turns of a loop and then sleeps. Spinning longer, the default, takes the cores from
other programs and from training's own threads: on shared cores, steps took several times as long. Sleeping at once
makes a second thread useless on small models (docs/performance-log.md). There are no more threads than the container
may use at once; PyTorch itself asks the machine, not the container. Settings in the environment take precedence.
"""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def allowed_cores(cgroup: Path = CGROUP) -> int | None:
    """What a container's CPU quota amounts to, rounded up; None without a quota."""
    try:
        if (cgroup / "cpu.max").exists():  # version 2
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroups, or "max"
        return None


if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
if (cores := allowed_cores()) is not None and cores < (os.cpu_count() or 1):
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
