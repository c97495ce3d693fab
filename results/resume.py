"""Cut training processes off and resume them: they must end where a whole run ends.

For every stage, on a tiny data set, one run goes straight through. The same run is
stopped with Ctrl-C, terminated with SIGTERM, and killed with SIGKILL again and again.
Every other kill comes as soon as a checkpoint is being written, the others at any moment
after the start. After every kill both checkpoints must load. At the end, weights,
optimizer, random generators and the log (without its wall times) must equal those of the
undisturbed run bit for bit. Writes what happened as JSON.

Run: python results/resume.py [--stage grpo]   (a quarter of an hour on two CPU cores)
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

from minivlm.running import checkpoint
from minivlm.running.machine import provenance
from minivlm.running.options import cli

ROOT = Path(__file__).resolve().parents[1]
STEPS = 30
SMALL = ("--threads", "1", "--seed", "3", "--steps", str(STEPS), "--eval_every", "5")
STAGES = {
    "lm": "--n_layer 2 --n_embd 32 --batch_size 8",
    "clip": "--n_layer 2 --n_embd 32 --batch_size 16",
    "caption": "--clip {runs}/clip --lm {runs}/lm --batch_size 8",
    "align": "--clip {runs}/clip --lm {runs}/lm --batch_size 8",
    "sft": "--init {runs}/align --batch_size 8",
    "reward": "--init {runs}/sft --batch_size 6",
    "ppo": "--init {runs}/sft --reward {runs}/reward --batch_size 6 --minibatches 1 "
           "--n_val 6 --max_new_tokens 6 --kl_target 1.0",
    "grpo": "--init {runs}/sft --reward {runs}/reward --batch_size 6 --n_copies 3 --minibatches 1 "
            "--n_val 6 --max_new_tokens 6",
    "dpo": "--init {runs}/sft --batch_size 6 --n_val 6 --max_new_tokens 6",
}
CHECKPOINTS = ("ckpt", "best")
NOT_COMPARED = ("ms", "mfu", "gb", "min")  # ends of the names of columns of time and memory


@dataclass
class Config:
    """Options of the measurement; the comments are the help texts."""

    kills: int = 104  # >= 0; SIGKILLs in all, shared among the scripts
    stage: str = ""  # disturb this script alone, and keep what `out` says of the others
    out: str = "results/resume.json"  # file to write
    seed: int = 0  # >= 0; decides the moments of the signals


# --- processes ---


def start(words: list[str]) -> subprocess.Popen:
    """Start a command in the checkout; only its errors are kept."""
    def take_ctrl_c() -> None:
        # a shell lets its background jobs ignore SIGINT, and they would hand that down
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=take_ctrl_c,
    )


def finish(words: list[str]) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: if it fails, with its errors.
    """
    process = start(words)
    errors = process.communicate()[1]
    if process.returncode:
        command = " ".join(words)
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors[-2000:]}")


# --- run folders ---


def log_of(run: Path) -> list[dict[str, str]]:
    """The rows of a log without the columns of wall time and memory."""
    with (run / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    return [{k: v for k, v in row.items() if not k.endswith(NOT_COMPARED)} for row in rows]


def equal(a: Path, b: Path) -> bool:
    """Whether two run folders hold the same bits."""
    for name in CHECKPOINTS:
        ours = torch.load(a / f"{name}.pt", weights_only=True)
        theirs = torch.load(b / f"{name}.pt", weights_only=True)
        if not checkpoint.equal(ours, theirs):
            return False
    return log_of(a) == log_of(b)


def step_of(run: Path, stage: str) -> int | None:
    """The step of a run's ckpt.pt, None if it has none yet."""
    if not (run / "ckpt.pt").is_file():
        return None
    return checkpoint.load(run / "ckpt.pt", (stage,))["step"]


def is_writing(run: Path) -> bool:
    """Whether a checkpoint is half written."""
    return any((run / f"{name}.tmp").is_file() for name in CHECKPOINTS)


def has_begun(run: Path, since: float) -> bool:
    """Whether a process that was started at this time has taken the run folder over."""
    env = run / "env.txt"
    return env.is_file() and env.stat().st_mtime > since


def n_unreadable(run: Path, stage: str) -> int:
    """How many checkpoints of a run do not load."""
    n = 0
    for name in CHECKPOINTS:
        path = run / f"{name}.pt"
        if not path.is_file():
            continue
        try:
            checkpoint.load(path, (stage,))
        except ValueError:
            n += 1
    return n


# --- signals ---


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> bool:
    """Wait until a run has logged a step; False if it has ended before."""
    log = run / "metrics.csv"
    while process.poll() is None:
        if log.is_file() and any(line.startswith(f"{step},") for line in log.open()):
            return True
        time.sleep(0.005)
    return False


def signaled(
    stage: str, what: signal.Signals, words: list[str], run: Path, rng: random.Random
) -> tuple[int, int]:
    """Send one signal in the middle and resume: the exit code, and the step that was kept.

    A run that is over before the signal reaches it is repeated.
    """
    while True:
        process = start(words)
        if wait_for_step(process, run, 5):
            time.sleep(0.1 * rng.random())  # some steps later, at a random moment
            process.send_signal(what)
        process.communicate()
        if process.returncode in (130, 143):  # ended by SIGINT, by SIGTERM
            kept = step_of(run, stage)
            finish([*words, "--resume"])
            return process.returncode, kept


def killed(stage: str, n: int, words: list[str], run: Path, rng: random.Random) -> dict:
    """Kill a run n times and resume it in between; count what the kills met and left."""
    counts = {"kills": 0, "while_writing": 0, "unreadable": 0}
    while counts["kills"] < n:
        step = step_of(run, stage)
        # a run that has ended between two kills begins anew
        resume = ["--resume"] if step is not None and step < STEPS else []
        # half a checkpoint of the kill before would be taken for a new one
        for name in CHECKPOINTS:
            (run / f"{name}.tmp").unlink(missing_ok=True)
        process = start([*words, *resume])
        began = time.time()
        # writing takes a small share of the time, so every other kill aims at it
        hit_writing = counts["kills"] % 2 == 0
        while process.poll() is None:
            is_moment = is_writing(run) if hit_writing else has_begun(run, began)
            if is_moment:
                break
            time.sleep(0.0002)
        # a checkpoint is written within milliseconds
        longest = 0.001 if hit_writing else 0.3
        time.sleep(longest * rng.random())
        if process.poll() is None:
            process.kill()
            counts["kills"] += 1
        process.communicate()
        counts["while_writing"] += int(is_writing(run))
        counts["unreadable"] += n_unreadable(run, stage)
    step = step_of(run, stage)
    if step is None:
        finish(words)
    elif step < STEPS:
        finish([*words, "--resume"])
    return counts


# --- all stages ---


def main(cfg: Config) -> None:
    """Measure all stages, write the file."""
    began = time.time()
    rng = random.Random(cfg.seed)
    table, done_at = {}, provenance(cfg, began)["environment"]["commit"]
    if cfg.stage:
        if cfg.stage not in STAGES:
            raise ValueError(f"stage {cfg.stage!r} is not one of {', '.join(STAGES)}")
        older = json.loads(Path(cfg.out).read_text())
        for stage, row in older["stages"].items():
            table[stage] = {"commit": older["environment"]["commit"]} | row
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        runs = Path(scratch) / "runs"

        def command(stage: str, run: Path) -> list[str]:
            """The command line of a stage."""
            options = STAGES[stage].format(runs=runs).split()
            script = [sys.executable, str(ROOT / f"train_{stage}.py")]
            return [*script, "--data", str(data), "--out", str(run), *SMALL, *options]

        finish([sys.executable, str(ROOT / "data/book/prepare.py"), "--out", str(data),
                "--n_train", "200", "--n_val", "40", "--n_web", "20", "--n_text", "300",
                "--n_zeroshot", "1", "--workers", "1"])
        # one script alone still needs the runs of all scripts before it
        names = list(STAGES)
        for i, stage in enumerate(names[:names.index(cfg.stage or names[-1]) + 1]):
            whole = runs / stage
            finish(command(stage, whole))
            if stage == "sft":  # stage 4 learns from the chatbot's own answers
                finish([sys.executable, str(ROOT / "data/preferences.py"),
                        "--run", str(whole), "--data", str(data), "--n", "24",
                        "--n_val", "6", "--k", "3", "--max_new_tokens", "6", "--seed", "3"])
            if cfg.stage == stage:
                table.pop(stage, None)  # to stand last
            elif cfg.stage:
                continue
            row = {"commit": done_at}
            for name, what in (("ctrl_c", signal.SIGINT), ("sigterm", signal.SIGTERM)):
                run = Path(scratch) / name / stage
                code, kept = signaled(stage, what, command(stage, run), run, rng)
                row[name] = {"exit_code": code, "kept_step": kept,
                             "equal": equal(whole, run)}
            # the first stages take one kill more if the number does not divide
            n, rest = divmod(cfg.kills, len(STAGES))
            if i < rest:
                n += 1
            run = Path(scratch) / "kill" / stage
            row["sigkill"] = killed(stage, n, command(stage, run), run, rng)
            row["sigkill"]["equal"] = equal(whole, run)
            table[stage] = row
            print(stage, json.dumps(row), flush=True)
    result = {"stages": table, **provenance(cfg, began)}
    Path(cfg.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    cli(main, Config)
