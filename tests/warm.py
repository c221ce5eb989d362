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
import time
from pathlib import Path

from tests.launch import ROOT, check_exit, command_environment

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pretrain", "evaluate", "torch._dynamo"])  # the optimizers import the last one
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
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self._write_stacks()
            if any(process.exitcode for process in self._processes) or time.monotonic() > deadline:
                self.kill()
            multiprocessing.connection.wait(
                [process.sentinel for process in self._processes if process.exitcode is None],
                timeout=max(0, deadline - time.monotonic()),
            )
        assert time.monotonic() < deadline, "\n".join((f"not over after {timeout} s", *self._output()))
        return self._output()

    def _write_stacks(self) -> None:
        """To stderr, one process after the other."""
        for process in self._processes:
            if process.exitcode is None:
                os.kill(process.pid, STACKS)
                process.join(2)

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
