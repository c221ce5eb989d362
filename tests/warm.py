"""Commands in processes of their own that need not import PyTorch: they are forked from one that only imported it.

A start takes hundredths of a second, not three seconds per rank, or nine for two ranks under torchrun. Not covered are
the start itself, torchrun, and how Python shuts an interpreter down: `tests.launch.run` is for these.
"""

import faulthandler
import multiprocessing.connection
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.launch import ROOT, check_exit, command_environment
from tests.waiting import Patience

SERVER = multiprocessing.get_context("forkserver")
# Commands, and what takes long in them: the optimizers import torch._dynamo, figures matplotlib.
SERVER.set_forkserver_preload(["pretrain", "evaluate", "torch._dynamo", "evaluators.figure_plots"])
TIMEOUT = 280
STACKS = signal.SIGUSR2  # on which a process writes where each of its threads is


def _become(arguments: list[str], environment: dict[str, str], cwd: str, files: tuple[str, str]) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    faulthandler.register(STACKS)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [folder for folder in environment["PYTHONPATH"].split(os.pathsep) if folder not in sys.path]
    import torch  # of the server, where it looked at the number of threads

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _threads(pid: int) -> list[str]:
    """A line for each: name, state, the call it waits in, blocked and ignored signals; as far as this kernel tells."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        facts = [status[key].strip() for key in ("Name", "State", "SigBlk", "SigIgn")]
        lines.append(" ".join((task.name, *facts, (task / "wchan").read_text())))
    return lines


class Started:
    """`python arguments…`, or `ranks` of it with the variables that torchrun sets; as `subprocess.Popen` is used."""

    def __init__(self, *arguments, ranks: int | None = None, cwd=ROOT, **env):
        self._folder = tempfile.TemporaryDirectory()
        self._files = tuple(Path(self._folder.name) / name for name in ("out", "err"))
        for file in self._files:
            file.touch()
        world = {"WORLD_SIZE": ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": _free_port()} if ranks else {}
        self._processes = []
        for rank in range(ranks or 1):
            own = {"RANK": rank, "LOCAL_RANK": rank} if ranks else {}
            settings = command_environment(**env | {key: str(value) for key, value in (world | own).items()})
            process = SERVER.Process(
                target=_become, args=([*map(str, arguments)], settings, str(cwd), tuple(map(str, self._files))),
                daemon=True,
            )  # fmt: skip
            process.start()
            self._processes.append(process)
        self.pids = [process.pid for process in self._processes]

    def poll(self) -> int | None:
        """The exit code when all have ended: of one that failed, before one that was killed for that."""
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else max(codes) or min(codes)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """What was written to stdout and stderr, when all have ended; if one fails, the others are killed."""
        patience = Patience(timeout)
        while self.poll() is None:
            if any(process.exitcode for process in self._processes):
                self.kill()
            elif patience.over:
                states = self._states()
                self.kill()
                raise AssertionError("\n".join((f"not over after {timeout} s", states, *self._output())))
            multiprocessing.connection.wait(
                [process.sentinel for process in self._processes if process.exitcode is None], timeout=1
            )
        return self._output()

    def _states(self) -> str:
        """What the kernel says of each thread; where its Python is goes to stderr, one process after the other."""
        lines = []
        for process in self._processes:
            if process.exitcode is None:
                lines += [f"process {process.pid}:", *_threads(process.pid)]
                os.kill(process.pid, STACKS)
                process.join(2)
        return "\n".join(lines)

    def _output(self) -> tuple[str, str]:
        return tuple(file.read_text() for file in self._files)

    def send_signal(self, number: int, rank: int = 0) -> None:
        os.kill(self.pids[rank], number)

    def kill(self) -> None:
        """As when the machine fails: every process at once, without a chance to say anything."""
        for process in self._processes:
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.join()


def run(*arguments, check: bool = True, **options) -> subprocess.CompletedProcess:
    """As `tests.launch.run`."""
    started = Started(*arguments, **options)
    out, err = started.communicate()
    return check_exit(subprocess.CompletedProcess(arguments, started.returncode, out, err), check)
