"""Cut whole processes off and resume them: each script must end where an undisturbed run ends.

For every stage, on a tiny data set: one run straight through, and the same run stopped with Ctrl-C,
terminated with SIGTERM, and killed with SIGKILL again and again, every other time as soon as a
checkpoint is being written, else at any moment after the start. After every kill both checkpoints
must load; at the end weights, optimizer, random generators and the log (wall times aside) must be
equal bit for bit. Writes a JSON file with what was seen.

Run: python results/resume.py   (a quarter of an hour on two CPU cores)
"""

import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
from minivlm.running import checkpoint, machine, options

STEPS = 30
SMALL = ("--threads", "1", "--seed", "3", "--steps", str(STEPS), "--eval_every", "5")
STAGES = {
    "lm": "--n_layer 2 --n_embd 32 --batch_size 8",
    "clip": "--n_layer 2 --n_embd 32 --batch_size 16",
    "caption": "--clip {runs}/clip --lm {runs}/lm --batch_size 8",
    "align": "--clip {runs}/clip --lm {runs}/lm --batch_size 8",
    "sft": "--init {runs}/align --batch_size 8",
    "reward": "--init {runs}/sft --batch_size 6",
    "ppo": "--init {runs}/sft --reward {runs}/reward --batch_size 6 --minibatches 1 --n_val 6 "
           "--max_new_tokens 6 --kl_target 1.0",
    "dpo": "--init {runs}/sft --batch_size 6 --n_val 6 --max_new_tokens 6",
}
NOT_COMPARED = ("ms", "gb", "min")  # ends of the names of columns with wall time and memory


@dataclass
class Config:
    """Options of the measurement; the comments are the help texts."""

    kills: int = 104  # SIGKILLs in all, shared among the scripts
    out: str = "results/resume.json"  # file to write
    seed: int = 0  # moments of the kills


def command(stage: str, folder: Path, runs: Path, out: Path, *more: str) -> list[str]:
    """The command line of a stage's run."""
    options = STAGES[stage].format(runs=runs).split()
    return [sys.executable, str(ROOT / f"train_{stage}.py"), "--data", str(folder),
            "--out", str(out), *SMALL, *options, *more]


def start(words: list[str]) -> subprocess.Popen:
    """Start a command in the checkout, its output thrown away but for errors."""
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # jobs in the background


def finish(words: list[str]) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: if it fails, with its errors.
    """
    going = start(words)
    errors = going.communicate()[1]
    if going.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {going.returncode}: {errors[-2000:]}")


def rows(out: Path) -> list[dict[str, str]]:
    """A log without its columns of wall time and memory."""
    with (out / "metrics.csv").open() as f:
        return [{k: v for k, v in row.items() if not k.endswith(NOT_COMPARED)}
                for row in csv.DictReader(f)]


def equal(a: Path, b: Path) -> bool:
    """Whether two run folders hold the same bits."""
    for name in ("ckpt.pt", "best.pt"):
        if not checkpoint.equal(*(torch.load(f / name, weights_only=True) for f in (a, b))):
            return False
    return rows(a) == rows(b)


def wait_for_step(going: subprocess.Popen, out: Path, step: int) -> bool:
    """Wait until the run has logged a step; False if it has ended before."""
    while going.poll() is None:
        log = out / "metrics.csv"
        if log.is_file() and any(line.startswith(f"{step},") for line in log.open()):
            return True
        time.sleep(0.005)
    return False


def signaled(stage: str, what: signal.Signals, folder: Path, runs: Path, out: Path,
             rng: random.Random) -> tuple[int, int]:
    """Send one signal in the middle, resume; return the exit code and the step that was kept.

    A run that is over before the signal reaches it is made again.
    """
    words = command(stage, folder, runs, out)
    while True:
        going = start(words)
        if wait_for_step(going, out, 5):
            time.sleep(0.1 * rng.random())
            going.send_signal(what)
        going.communicate()
        if going.returncode in (130, 143):
            kept = checkpoint.load(out / "ckpt.pt", (stage,))["step"]
            finish([*words, "--resume"])
            return going.returncode, kept


def killed(stage: str, n: int, folder: Path, runs: Path, out: Path, rng: random.Random) -> dict:
    """Kill a run n times, resuming it in between; say how many kills fell into the writing."""
    seen = {"kills": 0, "while_writing": 0, "unreadable": 0}
    halves = out / "ckpt.tmp", out / "best.tmp"
    words = command(stage, folder, runs, out)
    while seen["kills"] < n:
        resumable = (out / "ckpt.pt").is_file()
        if resumable and checkpoint.load(out / "ckpt.pt", (stage,))["step"] >= STEPS:
            resumable = False  # it has come to its end between two kills: from the beginning again
        for half in halves:
            half.unlink(missing_ok=True)
        going = start([*words, "--resume"] if resumable else words)
        began, writing = time.time(), seen["kills"] % 2 == 0
        while going.poll() is None and not (
            any(half.is_file() for half in halves) if writing else (out / "env.txt").is_file()
            and (out / "env.txt").stat().st_mtime > began
        ):
            time.sleep(0.0002)
        time.sleep((0.001 if writing else 0.3) * rng.random())
        if going.poll() is None:
            going.kill()
            seen["kills"] += 1
        going.communicate()
        seen["while_writing"] += any(half.is_file() for half in halves)
        for name in ("ckpt.pt", "best.pt"):
            try:
                if (out / name).is_file():
                    checkpoint.load(out / name, (stage,))
            except ValueError:
                seen["unreadable"] += 1
    at = checkpoint.load(out / "ckpt.pt", (stage,))["step"] if (out / "ckpt.pt").is_file() else 0
    if at < STEPS:
        finish([*words, "--resume"] if (out / "ckpt.pt").is_file() else words)
    return seen


def main(cfg: Config) -> None:
    """Measure all stages, write the file."""
    began, rng, table = time.time(), random.Random(cfg.seed), {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, runs = Path(scratch) / "data", Path(scratch) / "runs"
        finish([sys.executable, str(ROOT / "data/shapes/prepare.py"), "--out", str(folder),
                "--n_train", "200", "--n_val", "40", "--n_web", "20", "--n_text", "300",
                "--n_zeroshot", "1", "--workers", "1"])
        for i, stage in enumerate(STAGES):
            finish(command(stage, folder, runs, runs / stage))
            if stage == "sft":
                finish([sys.executable, str(ROOT / "data/preferences.py"), "--run",
                        str(runs / "sft"), "--data", str(folder), "--n", "24", "--n_val", "6",
                        "--k", "3", "--max_new_tokens", "6", "--tie", "0.0", "--seed", "3"])
            line = {}
            for name, what in (("ctrl_c", signal.SIGINT), ("sigterm", signal.SIGTERM)):
                out = Path(scratch) / name / stage
                code, kept = signaled(stage, what, folder, runs, out, rng)
                line[name] = {"exit_code": code, "kept_step": kept,
                              "equal": equal(runs / stage, out)}
            n = cfg.kills // len(STAGES) + (i < cfg.kills % len(STAGES))
            out = Path(scratch) / "kill" / stage
            line["sigkill"] = killed(stage, n, folder, runs, out, rng)
            line["sigkill"]["equal"] = equal(runs / stage, out)
            table[stage] = line
            print(stage, json.dumps(line), flush=True)
    result = {"stages": table, **machine.provenance(cfg, began)}
    Path(cfg.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    options.cli(main, Config)
