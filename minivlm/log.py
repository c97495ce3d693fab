"""A run's folder and its log: config.json, metrics.csv, ckpt.pt, best.pt, env.txt, the script.

A run that broke off on a loss that is no number leaves stopped.json too. Nothing here knows about
models. Used by: every training script.
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
from pathlib import Path

from tqdm import tqdm

from minivlm.files import read_text
from minivlm.run import check, environment, peak_gb


class Run:
    """A run folder and its log. Nothing is written or deleted before `begin`.

    From `begin` to `finish` a SIGTERM only sets `terminated`: the loop saves at its next step and
    calls `stop`. A second SIGTERM ends the process at once.

    Args:
        cfg: the script's Config; written to config.json.
        script: the script's file; a copy is kept.

    Raises:
        ValueError: if cfg.resume is set and there is nothing to resume.
    """

    def __init__(self, cfg, script: str):
        check(cfg)
        self.cfg, self.script = cfg, Path(script)
        self.folder = Path(cfg.out)
        self.csv = self.folder / "metrics.csv"
        self.ckpt, self.best = self.folder / "ckpt.pt", self.folder / "best.pt"
        if cfg.resume and not self.ckpt.is_file():
            raise ValueError(f"nothing to resume in {self.folder}: it has no ckpt.pt")
        self.recent: list[float] = []
        self.started = time.time()
        self.terminated, self.handler = False, signal.SIG_DFL

    def begin(self, start: int) -> None:
        """Take the folder over, once data, model and options are known to be good.

        A fresh run clears an older one's files away; a resumed run drops the log's rows behind step
        `start`, which it will write again.

        Raises:
            ValueError: if a resumed run has no step left to take, or its log is damaged.
        """
        if self.cfg.resume and start >= self.cfg.steps:
            raise ValueError(
                f"{self.folder} is at step {start} already, "
                f"nothing is left of {self.cfg.steps} steps"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.cfg.resume:
            own = (self.csv, self.ckpt, self.best, self.folder / "stopped.json")
            for old in (*own, *self.folder.glob("samples_*.png")):
                old.unlink(missing_ok=True)
        elif self.csv.is_file():
            try:
                header, *rows = read_text(self.csv).splitlines(keepends=True)
                # a row without its end was cut off by a kill or a full disk
                rows = [row for row in rows if row.endswith("\n")]
                steps = [int(row.split(",")[0]) for row in rows]
                if not header.startswith("step,") or steps != sorted(set(steps)) or min(steps) < 0:
                    raise ValueError
                kept = [row for row, step in zip(rows, steps) if step <= start]
            except ValueError:
                raise ValueError(f"{self.csv} is no log of a run; move it away to resume") from None
            temporary = self.csv.with_suffix(".tmp")
            temporary.write_text("".join([header, *kept]))
            os.replace(temporary, self.csv)
        (self.folder / "config.json").write_text(
            json.dumps(dataclasses.asdict(self.cfg), indent=2) + "\n"
        )
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        lines = [f"{k}: {v}" for k, v in (environment() | {"command": command}).items()]
        (self.folder / "env.txt").write_text("\n".join(lines) + "\n")
        shutil.copy(self.script, self.folder / self.script.name)
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            self.handler = signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_) -> None:
        self.terminated = True
        self._watch_no_more()

    def _watch_no_more(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    def stop(self, step: int) -> None:
        """End a terminated run, once step `step` is saved, as a shell expects it: exit code 143.

        Raises:
            SystemExit: always.
        """
        print(f"\nterminated; {self.ckpt} is at step {step}, --resume continues", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    def finish(self, figures: dict[str, float]) -> None:
        """Say how long it took and what came out; from here on SIGTERM is nothing special."""
        self._watch_no_more()
        said = ", ".join(f"{k} {v:.3f}" for k, v in figures.items())
        print(f"{self.cfg.out}: {self.minutes:.1f} min, {said}")

    def log(self, row: dict[str, float]) -> None:
        """Append a row, with peak memory and minutes so far, to metrics.csv and print it.

        The first row sets the columns.

        Raises:
            ValueError: for a column that the log has not, say that of another version.
        """
        row = row | {"gb": peak_gb(), "min": round(self.minutes, 2)}
        new = not self.csv.is_file()
        columns = list(row) if new else self.csv.read_text().split("\n", 1)[0].split(",")
        if not row.keys() <= set(columns):
            raise ValueError(f"{self.csv} has no columns {', '.join(row.keys() - set(columns))}")
        with self.csv.open("a", newline="") as f:
            writer = csv.DictWriter(f, fieldnames=columns, restval="", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        tqdm.write("  ".join(f"{k} {_short(v)}" for k, v in row.items() if v != ""))

    def check(self, loss: float, grad: float, step: int, ids: list[str]) -> None:
        """Stop on a loss or gradient that is no number; stopped.json then holds what led to it.

        Args:
            grad: the gradient's norm; the optimizer takes no step on one that is not finite.
            ids: the records of the batch, of which the message names the first eight.

        Raises:
            ValueError: if one of them is not finite, naming the step, the batch and the five losses
                before it.
        """
        if not math.isfinite(loss + grad):
            found = {"step": step, "loss": str(loss), "grad": str(grad), "batch": ids,
                     "recent_losses": self.recent}
            (self.folder / "stopped.json").write_text(json.dumps(found, indent=2) + "\n")
            self._watch_no_more()
            name, value = ("gradient", grad) if math.isfinite(loss) else ("loss", loss)
            raise ValueError(
                f"{name} is {value} at step {step}; batch {ids[:8]}; before it {self.recent}; "
                f"try a lower lr; all of it is in {self.folder / 'stopped.json'}"
            )
        self.recent = self.recent[-4:] + [round(loss, 4)]

    @property
    def minutes(self) -> float:
        """Wall time since the run began."""
        return (time.time() - self.started) / 60


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

    def means(self, names: tuple[str, ...]) -> dict[str, float | str]:
        """The means by name, "" before the first step; then start anew."""
        out = {name: self.sums[name] / self.n if self.n else "" for name in names}
        self.__init__()
        return out

    def state_dict(self) -> dict:
        """What a run that is resumed between two rows must know."""
        return {"sums": self.sums, "n": self.n}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict gave."""
        self.sums, self.n = dict(state["sums"]), state["n"]


def _short(v) -> str:
    if isinstance(v, float):
        return f"{v:7.4f}" if 1e-3 <= abs(v) < 1e4 or v == 0 else f"{v:7.1e}"
    return f"{v:>5}" if isinstance(v, int) else str(v)
