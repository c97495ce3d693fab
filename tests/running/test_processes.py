"""Several processes train as one does; if one of them is lost, the others end with a line each."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minivlm.running import processes

ROOT = Path(__file__).parents[2]
STAGES = ("lm", "clip", "siglip", "caption", "align", "sft", "reward", "ppo", "grpo", "dpo")
MACHINE = {"ms", "data_ms", "rollout_ms", "mfu", "gb", "min"}  # columns that no two runs share


def command(n: int, *args: str) -> list[str]:
    """The command that runs together.py in n processes."""
    script = str(Path(__file__).with_name("together.py"))
    if n == 1:
        return [sys.executable, script, *args]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
            str(n), script, *args]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(n: int, *args) -> None:
    done = subprocess.run(command(n, *map(str, args)), env=environment(), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def alone(folder, runs, tmp_path_factory) -> Path:
    """20 steps of every script in one process."""
    out = tmp_path_factory.mktemp("alone")
    run(1, folder, runs, out, 20, *STAGES)
    return out


@pytest.fixture(scope="module", params=[2, 4])
def shared(request, folder, runs, tmp_path_factory) -> Path:
    """The same in two and in four processes."""
    out = tmp_path_factory.mktemp("shared")
    run(request.param, folder, runs, out, 20, *STAGES)
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_several_processes_train_as_one_does(alone, shared, stage):
    """Catches: a batch read twice, gradients averaged twice, pairs compared in one process only,
    advantages whitened by each for itself, a figure of one share in the log.
    """
    n = [x for x in ("2", "4") if f"processes: {x}\n" in (shared / stage / "env.txt").read_text()]
    assert n and "processes: 1\n" in (alone / stage / "env.txt").read_text()
    mine, yours = rows_of(alone / stage), rows_of(shared / stage)
    assert len(mine) == len(yours) == 21 and mine[0].keys() == yours[0].keys()
    for a, b in zip(mine, yours):
        for name in a.keys() - MACHINE:
            assert bool(a[name]) == bool(b[name]), name
            if a[name]:
                close = pytest.approx(float(a[name]), rel=1e-3, abs=1e-3)
                exact = pytest.approx(float(a[name]), rel=0, abs=1e-5)
                assert float(b[name]) == (exact if name == "loss" else close), (name, a["step"])
    one, other = (torch.load(x / stage / "ckpt.pt", weights_only=True) for x in (alone, shared))
    assert one["step"] == other["step"] == 20
    for name, w in one["model"].items():
        torch.testing.assert_close(other["model"][name], w, rtol=0, atol=1e-4)


def train(folder: Path, runs: Path, out: Path, n: int, *more: str) -> subprocess.Popen:
    """train_sft.py itself, as torchrun starts it."""
    args = ["--init", f"{runs}/align", "--data", str(folder), "--out", str(out), "--batch_size",
            "8", "--grad_accum", "1", "--eval_every", "3", "--log_every", "1", "--seed", "3", *more]
    whole = command(n)
    whole[-1] = str(ROOT / "train_sft.py")
    return subprocess.Popen(whole + args, env=environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """The processes that torchrun has started, the first one first."""
    task = Path(f"/proc/{pid}/task/{pid}/children")
    return sorted(map(int, task.read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="/proc tells the processes")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_process_ends_the_others_and_the_run_goes_on_later(folder, runs, tmp_path, how):
    """Catches: a process that waits for ever, a traceback a process, a checkpoint that is cut off,
    and processes that stop at different steps when all are told to; another batch after a resume,
    which here has another number of processes.
    """
    started = train(folder, runs, tmp_path / "cut", 2, "--steps", "80")
    log = tmp_path / "cut" / "metrics.csv"
    end = time.time() + 120
    while not (log.is_file() and len(rows_of(log.parent)) > 7) and time.time() < end:
        time.sleep(0.1)
    if how == signal.SIGKILL:
        os.kill(children(started.pid)[-1], how)
    else:
        started.send_signal(how)
    _, err = started.communicate(timeout=120)
    assert started.returncode != 0
    ours = [text for text in err.splitlines() if "train_sft.py: error" in text]
    step = torch.load(tmp_path / "cut" / "ckpt.pt", weights_only=True)["step"]
    if how == signal.SIGKILL:
        assert ours == ["train_sft.py: error: process 0 of 2 ends, because another one has ended"]
        assert step % 3 == 0
    else:
        assert f"ckpt.pt is at step {step}, --resume continues" in err and not ours
    n = 4 if how == signal.SIGKILL else 1
    for process in (train(folder, runs, tmp_path / "whole", 1, "--steps", "80"),
                    train(folder, runs, tmp_path / "cut", n, "--steps", "80", "--resume")):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-2000:]
    whole, cut = (rows_of(tmp_path / name) for name in ("whole", "cut"))
    assert [row["step"] for row in cut] == [str(i) for i in range(81)]
    for a, b in zip(whole[1:], cut[1:]):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=0, abs=1e-4)
    one, other = (torch.load(tmp_path / name / "ckpt.pt", weights_only=True)["model"]
                  for name in ("whole", "cut"))
    for name, w in one.items():
        torch.testing.assert_close(other[name], w, rtol=0, atol=1e-3)


def test_one_process_needs_no_others():
    """Catches: a collective that waits for nobody; figures changed on the way."""
    x = torch.arange(6.0).view(3, 2)
    assert processes.size() == 1 and processes.rank() == 0 and processes.is_first()
    assert processes.total(1.5, 2) == [1.5, 2] and processes.largest(0.1) == 0.1
    assert torch.equal(processes.gather(x, 3), x) and processes.gather_items("ab", 2) == ["a", "b"]
    assert processes.mine([1, 2, 3]) == [1, 2, 3]
    processes.add_gradients([x])
    processes.wait()
    assert x.grad is None
