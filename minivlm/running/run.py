"""One run of a training script: its folder, its log, its checkpoints, and the order of all three.

    run = Run(cfg, __file__)                            # seeds, picks the device, writes nothing
    run.hold("lm", model, optimizer, tokenizer, config) # restores them if cfg.resume
    run.begin(make_batch)                               # takes over the run folder
    for step in run.steps():
        if run.is_due(step):
            run.record(figures, loss=...)               # row, best.pt, ckpt.pt, in this order
        if step == cfg.steps:
            break
        batch = run.next_batch()
        ...
        run.add(ids, loss=..., grad=..., lr=...)        # a row of means every log_every steps
    return run.finish()

The folder holds config.json, metrics.csv, ckpt.pt (resume from here), best.pt (start a next stage
from here), env.txt and a copy of the script. A run that stopped on NaN or inf leaves stopped.json.
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
from pathlib import Path

from torch import nn
from tqdm import tqdm

from minivlm.running import checkpoint
from minivlm.running.files import read_text
from minivlm.running.machine import (
    autocast, environment, peak_gb, pick_device, seed_everything,
)
from minivlm.running.options import check, settings
from minivlm.running.workers import batches
from minivlm.tokenizer import Tokenizer

COLUMNS = ("loss", "lr", "grad", "ms", "data_ms")  # of every metrics.csv, before a stage's own


class Run:
    """A run folder, and what happens in a training loop besides training.

    From `begin` to `finish` a SIGTERM only sets `terminated`: the run saves at its next step and
    ends with exit code 143. A second SIGTERM ends the process at once.

    Args:
        cfg: the script's Config; written to config.json.
        script: the script's file; a copy is kept.

    Raises:
        ValueError: if an option is refused, if this machine has no such device, or if cfg.resume is
            set and there is nothing to resume.
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
        self.device = pick_device(cfg.device)
        self.meter = Meter()
        self.start = 0                  # the step that this process begins with
        self.step = 0
        self.best_loss = float("inf")
        self.figures: dict[str, float] = {}
        self.recent: list[float] = []   # the last five losses, for stopped.json
        self.started = time.time()
        self.terminated = False
        self.handler = signal.SIG_DFL

    def autocast(self):
        """The context in which models compute: bfloat16 or float32, as --dtype says."""
        return autocast(self.device, self.cfg.dtype)

    # --- before the loop ---

    def hold(
        self, stage: str, model: nn.Module, optimizer, tokenizer: Tokenizer, config, **made_of: str
    ) -> None:
        """Say what checkpoints of this run contain; with --resume, restore it from the last one.

        Args:
            stage: "lm", "clip", "align", ...
            optimizer: one of optim.py's.
            config: the dataclass that rebuilds the model.
            made_of: anything else that a resumed run must find unchanged.

        Raises:
            ValueError: as `checkpoint.resume`; if a resumed run has no step left to take.
        """
        self.stage = stage
        self.model = model
        self.optimizer = optimizer
        self.tokenizer = tokenizer
        self.configs = {
            "model": dataclasses.asdict(config),
            "tokenizer": tokenizer.identity,
            **settings(self.cfg),
            **made_of,
        }
        if not self.cfg.resume:
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
        """Take the folder over, once data, model and options are known to be good.

        A fresh run deletes an older one's files. A resumed run drops the rows of the log behind the
        step that it starts with, because it will write them again.

        Args:
            make_batch: step -> batch; called once before anything is deleted, because a batch that
                cannot be made must not cost the run that the folder holds.

        Raises:
            ValueError: if the log of a resumed run is damaged, or as `make_batch`.
        """
        make_batch(self.start)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.cfg.resume:
            self._drop_rows_after(self.start)
        else:
            own = [self.csv, self.ckpt, self.best, self.folder / "stopped.json"]
            for old in own + list(self.folder.glob("samples_*.png")):
                old.unlink(missing_ok=True)
        options = json.dumps(dataclasses.asdict(self.cfg), indent=2)
        (self.folder / "config.json").write_text(options + "\n")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        known = environment() | {"command": command}
        (self.folder / "env.txt").write_text("".join(f"{k}: {v}\n" for k, v in known.items()))
        shutil.copy(self.script, self.folder / self.script.name)
        self.stream = batches(make_batch, self.start, self.cfg.steps, self.cfg.workers)
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self.handler = signal.signal(signal.SIGTERM, self._terminate)

    # --- the loop ---

    def steps(self) -> Iterator[int]:
        """Count from the first step to cfg.steps, with a progress bar.

        The last number is no step: it is there so that the trained model is measured. Between two
        evaluations, this is also where a row of means is written every cfg.log_every steps, and
        where a terminated run saves and ends.
        """
        self.bar = tqdm(
            range(self.start, self.cfg.steps + 1), desc=self.stage, initial=self.start,
            total=self.cfg.steps, disable=None,
        )
        for self.step in self.bar:
            if not self.is_due(self.step):
                if self.step > self.start and self.step % self.cfg.log_every == 0:
                    self._write_row({})
                if self.terminated:
                    self._save([self.ckpt])
                    self._stop()
            yield self.step

    def is_due(self, step: int) -> bool:
        """Whether the model is measured before this step: every cfg.eval_every steps, at the start
        and at the end. A resumed run was measured before it was cut off.
        """
        if self.cfg.resume and step == self.start:
            return False
        return step % self.cfg.eval_every == 0 or step == self.cfg.steps

    def record(self, figures: dict[str, float], loss: float, last_is_best: bool = False) -> None:
        """Write a row with what was measured, then best.pt if it is the best so far, then ckpt.pt.

        In this order nothing is lost: whatever a kill leaves undone, the run that resumes from the
        older ckpt.pt does again. Ends the process if SIGTERM has come meanwhile.

        Args:
            figures: name -> value, columns of the log.
            loss: what "best" is judged by, lower is better.
            last_is_best: take the latest model for the best, whatever its loss.
        """
        self.figures = figures
        self._write_row(figures)
        is_best = last_is_best or loss < self.best_loss
        self.best_loss = loss if last_is_best else min(self.best_loss, loss)
        self._save([self.best, self.ckpt] if is_best else [self.ckpt])
        if self.terminated and self.step < self.cfg.steps:
            self._stop()

    def next_batch(self):
        """The batch of this step, as `make_batch` made it."""
        self.began = time.time()
        batch = next(self.stream)
        self.got_batch = time.time()
        return batch

    def check(self, loss: float, grad: float, ids: list[str]) -> None:
        """Stop the run if the loss or the gradient is NaN or inf.

        Args:
            grad: the gradient's norm; an optimizer takes no step on one that is not finite.
            ids: the records of the batch, of which the message names the first eight.

        Raises:
            ValueError: naming step, batch and the five losses before; stopped.json holds them all.
        """
        if not math.isfinite(loss + grad):
            found = {"step": self.step, "loss": str(loss), "grad": str(grad), "batch": ids,
                     "recent_losses": self.recent}
            (self.folder / "stopped.json").write_text(json.dumps(found, indent=2) + "\n")
            self._ignore_no_more()
            name, value = ("gradient", grad) if math.isfinite(loss) else ("loss", loss)
            raise ValueError(
                f"{name} is {value} at step {self.step}; batch {ids[:8]}; before it {self.recent}; "
                f"try a lower lr; all of it is in {self.folder / 'stopped.json'}"
            )
        self.recent = self.recent[-4:] + [round(loss, 4)]

    def add(self, ids: list[str], *, loss: float, grad: float, lr: float, **more: float) -> None:
        """Note one step: checked at once, and averaged with its neighbors in the log.

        Args:
            ids: the records of the batch.
            loss, grad, lr: in nats, the gradient's norm before clipping, AdamW's rate.
            more: columns of this stage.

        Raises:
            ValueError: as `check`.
        """
        self.check(loss, grad, ids)
        now = time.time()
        self.meter.add(
            loss=loss, lr=lr, grad=grad, ms=1000 * (now - self.began),
            data_ms=1000 * (self.got_batch - self.began), **more,
        )
        self.bar.set_postfix(loss=f"{loss:.3f}")

    def finish(self) -> dict[str, float]:
        """Print how long the run took and what came out; return the last evaluation."""
        self._ignore_no_more()
        print(f"{self.cfg.out}: {self.minutes:.1f} minutes")
        for name, value in self.figures.items():
            print(f"  {name:24s} {value:.3f}")
        return self.figures

    @property
    def minutes(self) -> float:
        """Wall time since the run began."""
        return (time.time() - self.started) / 60

    # --- signals ---

    def _terminate(self, *_) -> None:
        self.terminated = True
        self._ignore_no_more()

    def _ignore_no_more(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    def _stop(self) -> None:
        """End a terminated run that has saved, with the exit code that a shell expects: 143."""
        print(
            f"\nterminated; {self.ckpt} is at step {self.step}, --resume continues",
            file=sys.stderr,
        )
        raise SystemExit(128 + signal.SIGTERM)

    # --- files ---

    def _save(self, paths: list[Path]) -> None:
        checkpoint.save(
            paths, stage=self.stage, configs=self.configs, model=self.model,
            tokenizer=self.tokenizer, step=self.step, best=self.best_loss,
            optimizer=self.optimizer, meter=self.meter,
        )

    def _write_row(self, figures: dict[str, float]) -> None:
        """Append the means since the last row, and the figures, to metrics.csv.

        Columns that the file lacks are added to it, empty in the older rows.
        """
        means = self.meter.means()
        row = {"step": self.step} | dict.fromkeys(COLUMNS, "") | means | figures
        row |= {"gb": peak_gb(), "min": round(self.minutes, 2)}
        rows = []
        if self.csv.is_file():
            with self.csv.open(newline="") as f:
                rows = list(csv.DictReader(f))
        columns = list(rows[0]) if rows else list(row)
        added = [name for name in row if name not in columns]
        if rows and not added:
            with self.csv.open("a", newline="") as f:
                csv.DictWriter(f, columns, restval="", lineterminator="\n").writerow(row)
        else:
            self._write_table(columns + added, rows + [row])
        if figures:  # a row of means alone is for the curves, not for the screen
            shown = {"step": self.step, **figures, "min": row["min"]}
            tqdm.write("  ".join(f"{name} {_short(value)}" for name, value in shown.items()))

    def _write_table(self, columns: list[str], rows: list[dict]) -> None:
        """Write metrics.csv anew, whole or not at all."""
        temporary = self.csv.with_suffix(".tmp")
        with temporary.open("w", newline="") as f:
            writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.csv)

    def _drop_rows_after(self, start: int) -> None:
        """Keep of metrics.csv the rows up to step `start`.

        Raises:
            ValueError: if it is no log of a run.
        """
        if not self.csv.is_file():
            return
        try:
            header, *lines = read_text(self.csv).splitlines(keepends=True)
            # a row without its end was cut off by a kill or a full disk
            lines = [line for line in lines if line.endswith("\n")]
            steps = [int(line.split(",")[0]) for line in lines]
            if not header.startswith("step,") or steps != sorted(set(steps)) or min(steps) < 0:
                raise ValueError
        except ValueError:
            raise ValueError(f"{self.csv} is no log of a run; move it away to resume") from None
        kept = [line for line, step in zip(lines, steps) if step <= start]
        temporary = self.csv.with_suffix(".tmp")
        temporary.write_text(header + "".join(kept))
        os.replace(temporary, self.csv)


class Meter:
    """Means of what is measured at every step, between two rows of the log."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.n = 0

    def add(self, **values: float) -> None:
        """Add one step's figures."""
        self.n += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def means(self) -> dict[str, float]:
        """The mean of each figure, {} if there was no step; then start anew."""
        out = {name: total / self.n for name, total in self.sums.items()}
        self.sums = {}
        self.n = 0
        return out

    def state_dict(self) -> dict:
        """What a run that is resumed between two rows must know."""
        return {"sums": self.sums, "n": self.n}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict gave."""
        self.sums = dict(state["sums"])
        self.n = state["n"]


def _short(value: float | int) -> str:
    if isinstance(value, float):
        usual = 1e-3 <= abs(value) < 1e4 or value == 0
        return f"{value:7.4f}" if usual else f"{value:7.1e}"
    return f"{value:>5}"
