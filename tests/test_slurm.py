"""The Slurm script, with stand-ins for Slurm's commands: python -m pytest tests/test_slurm.py"""

import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import ROOT
from tests.runs import read_metrics, reference_overrides
from tests.waiting import wait_for

SCRIPT = "scripts/slurm/train.sbatch"
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Slurm's nodes run Linux")

# srun: --ntasks copies of the command; signals go to their first processes alone (proctrack/cgroup), or to all (pgid).
SRUN = """
import os, signal, subprocess, sys
from pathlib import Path

command = sys.argv[1:]
tasks = int(command[0].removeprefix("--ntasks="))
while command[0].startswith("--"):
    command.pop(0)
running = []

def below(pid):
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(") ")[-1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            yield int(path.parent.name)
            yield from below(int(path.parent.name))

def forward(number, frame):
    targets = [task.pid for task in running]
    if os.environ["DELIVERY"] == "all":
        targets += [pid for task in running for pid in below(task.pid)]
    for pid in targets:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, forward)
running += [subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(n)}) for n in range(tasks)]
sys.exit(max(task.wait() for task in running))
"""

# scontrol: `requeue` is written down, and ends the batch shell as the real one does.
SCONTROL = """
import os, signal, sys

if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(sys.argv[3].split(",")))
else:
    with open(os.environ["CALLS"], "a") as calls:
        print(*sys.argv[1:], file=calls)
    os.kill(os.getppid(), signal.SIGTERM)
"""

# torchrun: one worker in a session of its own, no handler for SIGUSR1; its exit code is the worker's.
TORCHRUN = """
import os, subprocess, sys

sys.exit(subprocess.run([sys.executable, os.environ["WORKER"], *sys.argv[1:]], start_new_session=True).returncode)
"""

# pretrain.py: MODE is how it ends; `late` installs its handlers only when the file GO is there.
WORKER = """
import os, signal, sys, time
from pathlib import Path

mode, caught = os.environ["MODE"], []
print("arguments", *sys.argv[1:], flush=True)
if mode == "late":
    print("importing", flush=True)
    while not Path(os.environ["GO"]).exists():
        time.sleep(0.01)
if mode in ("stop", "late"):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: caught.append(signal.Signals(number).name))
    print("training", flush=True)
    while not caught:
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # Python's shutdown takes handlers away: a second signal would kill
        signal.signal(number, signal.SIG_IGN)
    print(f"stopped ({caught[0]}) at step 5; to go on: the same command with resume=true", flush=True)
if mode == "finish":
    print("finished: somewhere/step_9", flush=True)
sys.exit(7 if mode == "fail" else 0)
"""


class Job:
    """A job in a Slurm of stand-ins; its output and what it asked of scontrol."""

    def __init__(self, folder: Path):
        self.folder, self.output, self.calls = folder, folder / "slurm.out", folder / "calls"
        self.commands = folder / "bin"
        self.commands.mkdir()
        for name, source in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
            self.install(name, f"#!{sys.executable}\n{source}")
        (folder / "worker.py").write_text(WORKER)
        # as Slurm does, which runs a copy
        self.script = shutil.copy(ROOT / SCRIPT, folder / "slurm_script")
        self.process = None

    def install(self, name: str, text: str) -> None:
        (self.commands / name).write_text(text)
        (self.commands / name).chmod(0o755)

    def start(self, *args, nodes: int = 1, delivery: str = "first", mode: str = "", **env) -> None:
        settings = without_slurm() | {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": ",".join(["localhost"] * nodes), "SLURM_GPUS_ON_NODE": "1",
            "CALLS": str(self.calls), "WORKER": str(self.folder / "worker.py"), "GO": str(self.folder / "go"),
            "DELIVERY": delivery, "MODE": mode, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with open(self.output, "a") as output:
            self.process = subprocess.Popen(
                ["bash", self.script, *map(str, args)], cwd=ROOT, env=settings | env, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, text: str, count: int = 1) -> None:
        self.wait_until(lambda: self.output.read_text().count(text) >= count, text)

    def wait_until(self, condition, what: str) -> None:
        def it_came() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, f"ended before: {what}\n{self.output.read_text()}"
            return False

        wait_for(it_came, lambda: f"{what}\n{self.output.read_text()}")

    def sleeps(self) -> bool:
        """Whether the relay has been through the workers and pauses."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, rest = path.read_text().rsplit(") ", 1)
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.endswith("(sleep") and int(rest.split()[3]) == self.process.pid:  # its session
                return True
        return False

    def end(self) -> int:
        return self.process.wait(timeout=600)

    @property
    def requeued(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


def without_slurm() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "HRM_", "SCRATCH"))}


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path)
    yield job
    if job.process is not None and job.process.poll() is None:
        os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()


def dry_run(*args, **env) -> list[list[str]]:
    """The commands printed, as words."""
    env = without_slurm() | {"PATH": "/usr/bin:/bin"} | env
    done = subprocess.run(
        ["bash", ROOT / SCRIPT, "--dry-run", *args], cwd="/", env=env, capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def refusal(*args, **env) -> str:
    done = subprocess.run(
        ["bash", ROOT / SCRIPT, *args], env=without_slurm() | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and not done.stdout
    return line


def test_bash_and_shellcheck_find_nothing():
    subprocess.run(["bash", "-n", ROOT / SCRIPT], check=True)
    checker = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    assert checker, "pip install -e .[dev]"
    done = subprocess.run([checker, "--shell=bash", ROOT / SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_signal_is_asked_for():
    lines = (ROOT / SCRIPT).read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines[: lines.index("set -euo pipefail")] if "#SBATCH" in line]
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)


@pytest.mark.parametrize("nodes", [1, 2])
def test_dry_run(nodes):
    words = dry_run("--nodes", str(nodes), "--", "+experiment=arc_1", "eval_save_outputs=[logits, inputs]")
    assert words == [
        ["srun", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1",
         "bash", "scripts/slurm/train.sbatch", "--relay",
         "torchrun", f"--nnodes={nodes}", "--nproc-per-node=4", "--rdzv-id=JOBID", "--rdzv-backend=c10d",
         "--rdzv-endpoint=node1:20000",
         "pretrain.py", "+experiment=arc_1", "eval_save_outputs=[logits, inputs]", "resume=true",
         "checkpoint_path=checkpoints/slurm-JOBID"],
        ["scontrol", "requeue", "JOBID"],
    ]  # fmt: skip


def test_dry_run_in_containers():
    def inside(*args, **env) -> list[str]:
        (command, _) = dry_run("--image", "hrm:1", *args, "checkpoint_path=/scratch/run", **env)
        assert command[-2:] == ["checkpoint_path=/scratch/run", "resume=true"]
        return command[5 : command.index("bash")]

    assert inside("--container", "shifter", HRM_CONTAINER_ARGS="--module=gpu,nccl-plugin") == [
        "shifter", "--image=hrm:1", "--module=gpu,nccl-plugin",
    ]  # fmt: skip
    run = ["run", "--rm", "--network", "host", "--ipc", "host", "--volume", f"{ROOT}:{ROOT}", "--workdir", str(ROOT)]
    podman_hpc = inside("--container-args", "--nccl", HRM_CONTAINER="podman-hpc", SCRATCH="/scratch")
    assert podman_hpc[: len(run) + 3] == ["podman-hpc", *run, "--volume", "/scratch:/scratch"]
    assert podman_hpc[-3:] == ["--gpu", "--nccl", "hrm:1"]
    docker = inside("--container", "docker")
    assert docker[: len(run) + 1] == ["docker", *run]
    assert " ".join(docker[-7:]) == f"--gpus all --user {os.getuid()}:{os.getgid()} --env HOME=/tmp hrm:1"


def test_what_cannot_work_is_refused():
    assert "--container shifter needs --image" in refusal("--dry-run", "--container", "shifter")
    assert "choose one of shifter, podman-hpc" in refusal("--dry-run", "--container", "singularity")
    assert "submit with sbatch, or add --dry-run" in refusal("lr=1")
    assert "give it to sbatch" in refusal("--nodes", "2", "lr=1", SLURM_JOB_ID="1")
    assert "--gpus needs a number, not 'all'" in refusal("--dry-run", "--gpus", "all")
    assert "resume=other: every start goes on from checkpoint_path" in refusal("--dry-run", "--", "resume=other")
    assert "unknown option --node" in refusal("--dry-run", "--node", "2")


@pytest.mark.parametrize("delivery", ["first", "all"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_signal_reaches_the_workers_and_the_job_is_requeued(job, nodes, delivery):
    job.start("lr=1", nodes=nodes, delivery=delivery, mode="stop", SLURM_RESTART_COUNT="3")
    job.wait_for("training", nodes)
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 0
    output = job.output.read_text()
    assert output.count("stopped (SIGUSR1) at step 5") == nodes
    assert "restart 4 of at most 50" in output
    assert job.requeued == ["requeue 4242"]
    rendezvous = "--rdzv-id=4242 --rdzv-backend=c10d --rdzv-endpoint=localhost:24242 pretrain.py"
    assert f"arguments --nnodes={nodes} --nproc-per-node=1 {rendezvous} lr=1 resume=true" in output


@pytest.mark.parametrize("delivery", ["first", "all"])
def test_a_signal_before_the_worker_listens_is_kept(job, delivery):
    job.start(mode="late", delivery=delivery)
    job.wait_for("importing")
    job.process.send_signal(signal.SIGUSR1)
    job.wait_until(job.sleeps, "the relay has looked at the worker")
    (job.folder / "go").touch()
    assert job.end() == 0
    assert job.requeued == ["requeue 4242"]


def test_a_finished_run_is_not_requeued(job):
    job.start(mode="finish")
    assert job.end() == 0
    assert job.requeued == []


def test_a_failed_run_is_not_requeued_and_its_exit_code_passed_on(job):
    job.start(mode="fail")
    assert job.end() == 7
    assert job.requeued == []


def test_an_end_without_a_word_is_an_error(job):
    job.start(mode="silent")
    assert job.end() == 1
    assert "neither finished nor stopped; not requeued" in job.output.read_text()
    assert job.requeued == []


def test_a_cancelled_job_saves_and_is_not_requeued(job):
    job.start(mode="stop")
    job.wait_for("training")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 0
    assert "stopped (SIGTERM) at step 5" in job.output.read_text()
    assert job.requeued == []


def test_restarts_are_limited(job):
    job.start("--max-restarts", 2, mode="stop", SLURM_RESTART_COUNT="2")
    job.wait_for("training")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 1
    assert "after 2 restarts, the most allowed" in job.output.read_text()
    assert job.requeued == []


def job_with_a_free_port() -> str:
    """A job number whose rendezvous port nobody listens on."""
    for number in random.Random(os.getpid()).sample(range(10_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 20_000 + number)):
                return str(number)
    raise AssertionError("no free port")


@pytest.mark.apart
def test_pretrain_stops_on_two_nodes_is_requeued_and_finishes_on_one(job):
    job.install("torchrun", f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    folder, number = job.folder / "run", job_with_a_free_port()
    environment = dict(SLURM_JOB_ID=number, WANDB_MODE="disabled", DISABLE_COMPILE="1", PYTHONPATH=str(ROOT))
    job.start("--", *reference_overrides(folder, epochs=40_000), nodes=2, delivery="all", **environment)
    metrics = folder / "metrics.jsonl"
    job.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3, "the third step")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 0, job.output.read_text()
    assert job.requeued == [f"requeue {number}"]
    step = read_metrics(folder)[-1]["step"]
    assert (folder / f"state_{step}/rank_1.pt").exists()

    job.start("--", *reference_overrides(job.folder / "short", epochs=4), **environment)
    assert job.end() == 0, job.output.read_text()
    assert "train.sbatch: finished" in job.output.read_text()
    assert job.requeued == [f"requeue {number}"]
