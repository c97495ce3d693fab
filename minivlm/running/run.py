"""One run of a training script: its folder, log and checkpoints, written in a safe order.

    run = Run(cfg, __file__)                 # seeds, picks the device, writes nothing
    run.hold("lm", model, optimizer, tokenizer, config)   # if cfg.resume: restores them
    run.begin(make_batch)                    # takes over the run folder
    for step in run.steps():
        if run.is_due(step):
            run.record(figures, loss=...)    # a row of the log, then best.pt, then ckpt.pt
        if step == cfg.steps:
            break
        batch = run.next_batch()
        ...
        run.add(ids, loss=..., grad=..., lr=...)   # a row of means every log_every steps
    return run.finish()

The folder holds config.json, metrics.csv (the log), ckpt.pt (from which --resume
continues), best.pt (from which the next stage starts), env.txt and a copy of the script. If
a run stops on NaN or inf, it also leaves stopped.json.
"""

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minivlm.flops import FlopCounter
from minivlm.running import checkpoint, processes
from minivlm.running.files import read_text
from minivlm.running.machine import (
    autocast, environment, is_bfloat16, matmul_rate, peak_memory, pick_device,
    seed_everything,
)
from minivlm.running.options import check, printable, settings
from minivlm.running.workers import batches
from minivlm.tokenizer import Tokenizer

# the columns that every metrics.csv has between "step" and the stage's own
COLUMNS = ("loss", "lr", "grad", "ms", "data_ms", "mfu")
peak_rate = lru_cache(matmul_rate)  # measured once for all runs of a process


class Run:
    """A run folder, and everything that a training loop does besides training.

    Between `begin` and `finish`, a first SIGTERM only sets `terminated`: the run saves a
    checkpoint at its next step and ends with exit code 143. A second SIGTERM ends the
    process at once.

    Several processes may run together, see processes.py. All of them go through the same
    steps and measure the same model; the first one alone writes.

    Args:
        cfg: the script's Config; `begin` writes it to config.json.
        script: the script's file; `begin` copies it into the folder.

    Raises:
        ValueError: if an option is refused, if this machine has no such device, or if
            cfg.resume is set and there is no ckpt.pt.
    """

    def __init__(self, cfg, script: str):
        check(cfg)
        self.cfg = cfg
        self.script = Path(script)
        self.folder = Path(cfg.out)
        self.csv = self.folder / "metrics.csv"
        self.ckpt = self.folder / "ckpt.pt"
        self.best = self.folder / "best.pt"
        if cfg.resume and not self.ckpt.is_file():
            raise ValueError(f"nothing to resume in {self.folder}: it has no ckpt.pt")
        seed_everything(cfg.seed, cfg.threads)
        self.device = processes.start(pick_device(cfg.device))
        if processes.size() > 1 and cfg.batch_size < processes.size():
            raise ValueError(
                f"a batch of {cfg.batch_size} is too small for {processes.size()} processes"
            )
        self.half = is_bfloat16(self.device, cfg.dtype)
        self.meter = Meter()
        self.start = 0                  # the step that this process begins with
        self.step = 0
        self.best_loss = float("inf")
        self.figures: dict[str, float] = {}
        self.recent: list[float] = []   # losses of the last five steps, for stopped.json
        self.started = time.time()
        self.terminated = False         # whether SIGTERM has come
        self.handler = signal.SIG_DFL   # what SIGTERM did before `begin`

    def autocast(self):
        """Return the context in which models compute: bfloat16 or float32, see --dtype."""
        return autocast(self.device, self.cfg.dtype)

    # --- before the loop ---

    def hold(
        self, stage: str, model: nn.Module, optimizer, tokenizer: Tokenizer, config,
        **made_of: str,
    ) -> None:
        """Say what this run's checkpoints hold; with --resume, restore all of it.

        Args:
            stage: "lm", "clip", "align", ...
            optimizer: one of optim.py's.
            config: the model's config, a dataclass from which the model is rebuilt.
            made_of: other values that a resumed run must find unchanged, for instance the
                fingerprint of the weights that the run started from.

        Raises:
            ValueError: as `checkpoint.resume`; if a resumed run has no step left to take.
        """
        self.stage = stage
        self.model = model
        self.counter = FlopCounter(model)
        self.optimizer = optimizer
        self.tokenizer = tokenizer
        self.configs = {
            **settings(self.cfg),
            "model": dataclasses.asdict(config),
            "tokenizer": tokenizer.identity,  # in place of train_lm.py's option, a file
            **made_of,
        }
        if not self.cfg.resume:
            processes.copy_first([*model.parameters(), *model.buffers()])
            return
        self.start, self.best_loss = checkpoint.resume(
            self.ckpt, stage, self.configs, model, optimizer, self.meter
        )
        if self.start >= self.cfg.steps:
            raise ValueError(
                f"{self.folder} is at step {self.start} already, "
                f"nothing is left of {self.cfg.steps} steps"
            )

    def begin(self, make_batch: Callable) -> None:
        """Take over the run folder. Call this when data, model and options are checked.

        A fresh run deletes the files of an older run. A resumed run drops the log's rows
        behind the step that it starts with, because it will write these rows again.

        Args:
            make_batch: step -> batch, a pure function. It is called once before anything is
                deleted: if no batch can be made, the older run in the folder stays.

        Raises:
            ValueError: if the log of a resumed run is damaged, or as `make_batch`.
        """
        make_batch(self.start)
        if processes.is_first():
            self._take_over()
        processes.wait()
        dtype = torch.bfloat16 if self.half else torch.float32
        self.peak = peak_rate(self.device, dtype)
        self.stream = batches(make_batch, self.start, self.cfg.steps, self.cfg.workers)
        if threading.current_thread() is threading.main_thread():  # no other thread may
            self.handler = signal.signal(signal.SIGTERM, self._terminate)

    def _take_over(self) -> None:
        """Delete the files of an older run; write options, environment and script."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stale = [self.folder / "stopped.json"]
        if self.cfg.resume:
            self._drop_rows_after(self.start)
        else:
            stale += [self.csv, self.ckpt, self.best, *self.folder.glob("samples_*.png")]
        for old in stale:
            old.unlink(missing_ok=True)
        options = json.dumps(dataclasses.asdict(self.cfg), indent=2)
        (self.folder / "config.json").write_text(options + "\n")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        known = environment() | {"command": command, "processes": processes.size()}
        # a file's name may hold bytes that are no UTF-8; they cannot be written as text
        lines = printable("".join(f"{k}: {v}\n" for k, v in known.items()))
        (self.folder / "env.txt").write_text(lines, encoding="utf-8")
        shutil.copy(self.script, self.folder / self.script.name)

    # --- the loop ---

    def steps(self) -> Iterator[int]:
        """Count from the first step to cfg.steps, with a progress bar.

        At the last number, cfg.steps, the loop takes no step: it only measures the trained
        model. Before a step at which nothing is measured, this generator also writes a row
        of means (every cfg.log_every steps), and saves and ends a terminated run.

        Raises:
            SystemExit: with code 143, if SIGTERM has come.
        """
        self.bar = tqdm(
            range(self.start, self.cfg.steps + 1), desc=self.stage, initial=self.start,
            total=self.cfg.steps, disable=None if processes.is_first() else True,
        )
        for self.step in self.bar:
            if not self.is_due(self.step):
                if self.step > self.start and self.step % self.cfg.log_every == 0:
                    self._write_row({})
                if self._is_to_stop():
                    self._save([self.ckpt])
                    self._stop()
            yield self.step

    def is_due(self, step: int) -> bool:
        """Whether the model is measured before this step.

        It is measured every cfg.eval_every steps from step 0 on, and at the end. A resumed
        run does not measure at its first step: it did so before it was stopped.
        """
        if self.cfg.resume and step == self.start:
            return False
        return step % self.cfg.eval_every == 0 or step == self.cfg.steps

    def record(
        self, figures: dict[str, float], loss: float, last_is_best: bool = False
    ) -> None:
        """Write a row of figures, then best.pt if this model is the best, then ckpt.pt.

        In this order a kill loses nothing: ckpt.pt is then the older one, and the run that
        resumes from it writes all three again.

        Args:
            figures: name -> value, columns of the log.
            loss: the model with the lowest loss is the best.
            last_is_best: make the latest model the best, whatever its loss.

        Raises:
            SystemExit: with code 143, if SIGTERM has come and steps are left.
        """
        self.figures = figures
        self._write_row(figures)
        is_best = last_is_best or loss < self.best_loss
        self.best_loss = loss if last_is_best else min(self.best_loss, loss)
        self._save([self.best, self.ckpt] if is_best else [self.ckpt])
        if self.step < self.cfg.steps and self._is_to_stop():
            self._stop()

    @property
    def n_parts(self) -> int:
        """Micro-batches of a batch that all processes share out: cfg.grad_accum or more."""
        P = processes.size()
        return math.ceil(self.cfg.grad_accum / P) * P

    def next_batch(self):
        """Return the batch of this step, as `make_batch` made it."""
        self.began = time.time()
        batch = next(self.stream)
        self.got_batch = time.time()
        self.counter.flops = 0
        return batch

    def check(self, loss: float, grad: float, ids: list[str]) -> None:
        """Stop the run if the loss or the gradient is NaN or inf.

        Args:
            grad: the gradient's norm. If it is NaN or inf, the optimizers of optim.py have
                taken no step.
            ids: the ids of the batch's records.

        Raises:
            ValueError: if one of the two is NaN or inf. The message names the step, eight
                records of the batch, and the last five losses. stopped.json holds the same,
                with all records of the batch.
        """
        if not math.isfinite(loss + grad):
            found = {
                "step": self.step, "loss": str(loss), "grad": str(grad), "batch": ids,
                "recent_losses": self.recent,
            }
            stopped = self.folder / "stopped.json"
            if processes.is_first():
                stopped.write_text(json.dumps(found, indent=2) + "\n")
            self._restore_handler()
            name, value = ("gradient", grad) if math.isfinite(loss) else ("loss", loss)
            raise ValueError(
                f"{name} is {value} at step {self.step}; batch {ids[:8]}; "
                f"losses before {self.recent}; try a lower lr; "
                f"the whole batch is in {stopped}"
            )

    def add(
        self, ids: list[str], *, loss: float, grad: float, lr: float, **more: float
    ) -> None:
        """Check the figures of one step, and add them to the means of the next row.

        Three columns of time come with them: ms of the step, data_ms of waiting for its
        batch, and mfu, the arithmetic that `FlopCounter` counted in it as a share of what
        large matrix products alone could have done in that time.

        Args:
            ids: the ids of the batch's records.
            loss: the step's loss.
            grad: the gradient's norm before clipping.
            lr: AdamW's learning rate.
            more: columns of this stage; every step must give the same ones.

        Raises:
            ValueError: as `check`.
        """
        self.check(loss, grad, ids)
        self.recent = self.recent[-4:] + [round(loss, 4)]
        seconds = time.time() - self.began
        if self.counter.flops:  # compiled models are not counted
            more["mfu"] = self.counter.flops / seconds / self.peak
        self.meter.add(
            loss=loss, lr=lr, grad=grad, ms=1000 * seconds,
            data_ms=1000 * (self.got_batch - self.began), **more,
        )
        self.bar.set_postfix(loss=f"{loss:.3f}")

    def finish(self) -> dict[str, float]:
        """Print the run's minutes and the figures of its last evaluation; return these."""
        self._restore_handler()
        print(f"{self.cfg.out}: {self.minutes:.1f} minutes")
        for name, value in self.figures.items():
            print(f"  {name:24s} {value:.3f}")
        return self.figures

    @property
    def minutes(self) -> float:
        """Minutes since this process made the Run."""
        return (time.time() - self.started) / 60

    # --- signals ---

    def _is_to_stop(self) -> bool:
        """Whether SIGTERM has come to any process; all of them must ask at the same step.

        The signal may reach the processes at different steps.
        """
        return sum(processes.total(self.terminated)) > 0

    def _terminate(self, *_) -> None:
        self.terminated = True
        # torchrun sends the signal more than once, and SIGKILL after half a minute
        if processes.size() == 1:
            self._restore_handler()

    def _restore_handler(self) -> None:
        """Let the next SIGTERM do what it did before `begin`."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    def _stop(self) -> None:
        """End a terminated run that has saved, with exit code 143, as shells expect."""
        if processes.is_first():
            print(
                f"\nterminated; {self.ckpt} is at step {self.step}, --resume continues",
                file=sys.stderr,
            )
        raise SystemExit(128 + signal.SIGTERM)

    # --- files ---

    def _save(self, paths: list[Path]) -> None:
        if not processes.is_first():
            return
        checkpoint.save(
            paths, stage=self.stage, configs=self.configs, model=self.model,
            tokenizer=self.tokenizer, step=self.step, best=self.best_loss,
            optimizer=self.optimizer, meter=self.meter,
        )

    def _write_row(self, figures: dict[str, float]) -> None:
        """Append the means since the last row, and the figures, to metrics.csv.

        If the file lacks a column, the column is added, and is empty in older rows.
        """
        means = self.meter.means()
        if not processes.is_first():
            return
        row = {"step": self.step} | dict.fromkeys(COLUMNS, "") | means | figures
        row |= peak_memory("gb", self.device) | {"min": round(self.minutes, 2)}
        columns = []
        if self.csv.is_file():
            with self.csv.open(newline="") as f:
                columns = next(csv.reader(f), [])
        added = [name for name in row if name not in columns]
        if added:
            self._add_columns(columns + added)
            columns += added
        with self.csv.open("a", newline="") as f:
            csv.DictWriter(f, columns, restval="", lineterminator="\n").writerow(row)
        if figures:  # a row that has means only is for the curves, not for the screen
            shown = {"step": self.step, **figures, "min": row["min"]}
            texts = [f"{name} {_short(value)}" for name, value in shown.items()]
            tqdm.write("  ".join(texts))

    def _add_columns(self, columns: list[str]) -> None:
        """Write metrics.csv anew with these columns, whole or not at all."""
        rows = []
        if self.csv.is_file():
            with self.csv.open(newline="") as f:
                rows = list(csv.DictReader(f))
        temporary = self.csv.with_suffix(".tmp")
        with temporary.open("w", newline="") as f:
            writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.csv)

    def _drop_rows_after(self, start: int) -> None:
        """Drop the rows of metrics.csv behind step `start`.

        Raises:
            ValueError: if the file is no log of a run.
        """
        if not self.csv.is_file():
            return
        try:
            header, *lines = read_text(self.csv).splitlines(keepends=True)
            # a kill or a full disk may have cut the last row off
            lines = [line for line in lines if line.endswith("\n")]
            steps = [int(line.split(",")[0]) for line in lines]
            rising = steps == sorted(set(steps))
            if not header.startswith("step,") or not rising or min(steps) < 0:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{self.csv} is no log of a run; move it away to resume"
            ) from None
        kept = [line for line, step in zip(lines, steps) if step <= start]
        temporary = self.csv.with_suffix(".tmp")
        # not write_text, which changes the ends of lines on Windows
        temporary.write_bytes((header + "".join(kept)).encode())
        os.replace(temporary, self.csv)


class Meter:
    """Average the figures of the steps between two rows of the log."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.n = 0

    def add(self, **values: float) -> None:
        """Add one step's figures; each step must have the same ones."""
        self.n += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return the mean of each figure, {} if there was no step; then start anew."""
        out = {name: total / self.n for name, total in self.sums.items()}
        self.sums = {}
        self.n = 0
        return out

    def state_dict(self) -> dict:
        """Return what a run needs that is resumed between two rows of the log."""
        return {"sums": self.sums, "n": self.n}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.sums = dict(state["sums"])
        self.n = state["n"]


def _short(value: float | int) -> str:
    if isinstance(value, float):
        usual = 1e-3 <= abs(value) < 1e4 or value == 0
        return f"{value:7.4f}" if usual else f"{value:7.1e}"
    return f"{value:>5}"
