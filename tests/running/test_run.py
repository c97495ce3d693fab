"""minivlm/running/run.py: the run folder, its log, the order of its files, and what stops a run."""

import csv
import json
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minivlm.gpt import GPTConfig
from minivlm.optim import Optimizer
from minivlm.running import checkpoint, machine, run as module
from minivlm.running.run import Meter, Run


@dataclass
class Config:
    """Options of a made-up script."""

    out: str = "runs/x"
    steps: int = 10
    lr: float = 1e-3
    eval_every: int = 10
    log_every: int = 2
    seed: int = 0
    device: str = "cpu"
    dtype: str = "auto"
    threads: int = 0
    workers: int = 0
    resume: bool = False


@dataclass
class WithFile(Config):
    """Options of a made-up script that names a tokenizer's file."""

    tokenizer: str = ""


@pytest.fixture(autouse=True)
def default_sigterm():
    """A run that a test breaks off leaves its handler behind."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def make_batch(step: int) -> int:
    return 100 * step


def started(cfg: Config, tokenizer) -> Run:
    """A run of a model with one weight, ready for its loop."""
    run = Run(cfg, __file__)
    model = nn.Linear(1, 1)
    run.hold("lm", model, Optimizer(model, cfg.lr, 0.0), tokenizer, GPTConfig())
    run.begin(make_batch)
    return run


def train(run: Run, event=None) -> list[int]:
    """A loop as every script has it, with losses 0, 1, 2, ...; the steps that it took.

    event: called with each step before its update.
    """
    taken = []
    for step in run.steps():
        if run.is_due(step):
            run.record({"val_loss": 5.0 - step}, loss=5.0 - step)
        if step == run.cfg.steps:
            break
        assert run.next_batch() == 100 * step
        if event:
            event(step)
        taken.append(step)
        run.add([f"r{step}"], loss=float(step), grad=1.0, lr=0.5)
    run.finish()
    return taken


def rows_of(run: Run) -> list[dict]:
    return list(csv.DictReader(run.csv.open()))


# --- the folder ---


def test_a_run_folder_says_how_it_was_made(tmp_path, monkeypatch, tokenizer):
    """Catches a run that cannot be repeated: options, command, versions and script are kept."""
    monkeypatch.setattr("sys.argv", ["here/train_x.py", "--lr", "0.5"])
    out = tmp_path / "deep" / "run"
    cfg = Config(out=str(out), lr=0.5)
    Run(cfg, __file__)
    assert not out.exists()
    run = started(cfg, tokenizer)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "env.txt", "test_run.py"]
    config = json.loads((out / "config.json").read_text())
    assert config["lr"] == 0.5 and config["out"] == str(out) and config.keys() == vars(cfg).keys()
    env = dict(line.split(": ", 1) for line in (out / "env.txt").read_text().splitlines())
    assert env["command"] == "train_x.py --lr 0.5"
    assert env["torch"] == torch.__version__.split("+")[0]
    assert (out / "test_run.py").read_text() == Path(__file__).read_text()
    assert (run.ckpt, run.best, run.csv) == (
        out / "ckpt.pt", out / "best.pt", out / "metrics.csv")
    assert 0 <= run.minutes < 1


def test_a_fresh_run_drops_the_old_ones_results_when_it_begins(tmp_path, tokenizer):
    """Catches a new curve appended to an old one, and a mistyped option that costs the old run."""
    old = ("metrics.csv", "ckpt.pt", "best.pt", "samples_0.png", "notes.txt")
    for name in old:
        (tmp_path / name).write_text("old")
    run = Run(Config(out=str(tmp_path)), __file__)
    model = nn.Linear(1, 1)
    run.hold("lm", model, Optimizer(model, 0.1, 0.0), tokenizer, GPTConfig())

    def impossible(step: int):
        raise ValueError("no such batch")

    with pytest.raises(ValueError, match="no such batch"):
        run.begin(impossible)
    assert all((tmp_path / name).read_text() == "old" for name in old)
    assert len(list(tmp_path.iterdir())) == len(old)
    run.begin(make_batch)
    assert [name for name in old if (tmp_path / name).exists()] == ["notes.txt"]


def test_a_resumed_run_has_not_stopped(tmp_path, tokenizer):
    """Catches a stopped.json beside a run that goes on well, with the losses of another lr."""
    train(started(Config(out=str(tmp_path)), tokenizer))
    (tmp_path / "stopped.json").write_text("{}")
    train(started(Config(out=str(tmp_path), steps=12, resume=True), tokenizer))
    assert not (tmp_path / "stopped.json").exists()


def test_a_run_holds_the_identity_of_its_tokenizer(tmp_path, tokenizer):
    """Catches a file's name kept in its place: a run would resume with another file's tokens."""
    run = started(WithFile(out=str(tmp_path), tokenizer="vocab.bpe"), tokenizer)
    assert run.configs["tokenizer"] == tokenizer.identity


def test_a_command_that_is_no_text_does_not_end_the_run(tmp_path, tokenizer, monkeypatch):
    """Catches an error after the old run is deleted: a file's name may hold any bytes, which
    Python shows as half characters, and é where the system's encoding has none.
    """
    monkeypatch.setattr("sys.argv", ["train_x.py", "--data", "caf\xe9/\udcff"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("io.text_encoding", lambda encoding, level=2: encoding or "ascii")
        started(Config(out=str(tmp_path)), tokenizer)
    env = (tmp_path / "env.txt").read_text(encoding="utf-8")
    assert "command: train_x.py --data caf\xe9/\\udcff\n" in env


def test_memory_that_the_system_does_not_tell_is_no_column(tmp_path, tokenizer, monkeypatch):
    """Catches a figure of 0 GB, or an error, on Windows, which has no module `resource`."""
    monkeypatch.setattr(machine, "resource", None)
    monkeypatch.setattr(machine, "STATUS", tmp_path / "none")
    run = started(Config(out=str(tmp_path), steps=2), tokenizer)
    train(run)
    assert "gb" not in rows_of(run)[0] and rows_of(run)[0]["min"]
    assert "peak_gb" not in machine.provenance(Config(), 0.0)


def test_memory_is_in_gigabytes(tmp_path, monkeypatch):
    """Catches kibibytes taken for kilobytes: Linux tells 2,000,000 KiB, which are 2.048 GB; macOS
    tells bytes.
    """
    status = tmp_path / "status"
    status.write_text("VmPeak:\t 9000000 kB\nVmHWM:\t 2000000 kB\nVmRSS:\t 1000 kB\n")
    monkeypatch.setattr(machine, "STATUS", status)
    assert machine.peak_memory("gb") == {"gb": 2.05}
    status.unlink()
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=2_000_000))
    monkeypatch.setattr(machine, "resource", usage)
    monkeypatch.setattr("sys.platform", "linux")
    assert machine.peak_memory("gb") == {"gb": 2.05}
    monkeypatch.setattr("sys.platform", "darwin")
    assert machine.peak_memory("gb") == {"gb": 0.0}


def test_resuming_a_finished_run_is_refused(tmp_path, tokenizer):
    """Catches an empty loop that ends as if all were well."""
    train(started(Config(out=str(tmp_path)), tokenizer))
    for steps in (10, 7):
        with pytest.raises(ValueError, match=f"is at step 10 already, nothing is left of {steps}"):
            started(Config(out=str(tmp_path), steps=steps, resume=True), tokenizer)


def test_resuming_nothing_is_refused(tmp_path):
    """Catches --resume that silently starts anew; nothing is written either."""
    with pytest.raises(ValueError, match="nothing to resume in .*new: it has no ckpt.pt"):
        Run(Config(out=str(tmp_path / "new"), resume=True), __file__)
    assert not (tmp_path / "new").exists()


# --- the loop ---


def test_the_log_holds_means_every_few_steps_and_figures_where_they_are_due(tmp_path, tokenizer):
    """Catches curves without points, means that count a step twice, and rows out of order.

    Losses are 0, 1, 2, ...: the row of step 4 has the mean of steps 2 and 3, 2.5.
    """
    run = started(Config(out=str(tmp_path), steps=7, eval_every=6), tokenizer)
    assert train(run) == list(range(7))
    rows = rows_of(run)
    assert [r["step"] for r in rows] == ["0", "2", "4", "6", "7"]
    assert [r["loss"] for r in rows] == ["", "0.5", "2.5", "4.5", "6.0"]
    assert [r["val_loss"] for r in rows] == ["5.0", "", "", "-1.0", "-2.0"]
    assert {r["lr"] for r in rows[1:]} == {"0.5"} and float(rows[1]["ms"]) >= 0


def test_the_log_tells_the_share_of_the_machines_rate(tmp_path, tokenizer, monkeypatch):
    """Catches arithmetic of an evaluation that counts as a step's, and a sum that is never reset.

    A step takes 2 seconds. A map of one weight reads 4 rows: 8 operations, and 8 for its gradient.
    """
    now = [0.0]
    monkeypatch.setattr(module, "peak_rate", lambda *_: 16.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now[0]))
    run = started(Config(out=str(tmp_path), steps=4), tokenizer)
    for step in run.steps():
        run.model(torch.ones(100, 1))  # whoever measures calls the model, too
        if step == 4:
            run.record({}, loss=0.0)
            break
        run.next_batch()
        now[0] += 2
        run.model(torch.ones(4, 1))
        run.add([], loss=1.0, grad=1.0, lr=1.0)
    assert [r["mfu"] for r in rows_of(run)] == ["0.5", "0.5"]


def test_the_last_figures_are_returned_and_printed(tmp_path, tokenizer, capsys):
    """Catches a summary of another step."""
    run = started(Config(out=str(tmp_path), steps=3), tokenizer)
    train(run)
    assert run.figures == run.finish() == {"val_loss": 2.0}
    assert "val_loss                 2.000" in capsys.readouterr().out


def test_a_new_column_is_added_to_the_rows_before(tmp_path, tokenizer, monkeypatch):
    """Catches columns that shift when a row has other keys than the first one."""
    monkeypatch.setattr(module, "peak_memory", lambda name, _: {name: 0.5})
    run = started(Config(out=str(tmp_path)), tokenizer)
    run._write_row({"val": 4.625})
    run.step = 10
    run.meter.add(loss=2.5, scale=3.0)
    run._write_row({})
    run.step = 20
    run._write_row({"val": math.nan})
    assert run.csv.read_text() == (
        "step,loss,lr,grad,ms,data_ms,mfu,val,gb,min,scale\n"
        "0,,,,,,,4.625,0.5,0.0,\n"
        "10,2.5,,,,,,,0.5,0.0,3.0\n"
        "20,,,,,,,nan,0.5,0.0,\n"
    )
    assert not list(tmp_path.glob("*.tmp"))


def test_best_is_the_lowest_loss_or_the_last(tmp_path, tokenizer):
    """Catches a best.pt that a worse model overwrites, and one that is not written at all."""
    run = started(Config(out=str(tmp_path), steps=4, eval_every=1), tokenizer)
    losses = {0: 3.0, 1: 1.0, 2: 2.0, 3: 1.0, 4: 4.0}
    for step in run.steps():
        run.record({"val_loss": losses[step]}, loss=losses[step], last_is_best=step == 4)
        kept = checkpoint.load(run.best, ("lm",))
        assert kept["step"] == {0: 0, 1: 1, 2: 1, 3: 1, 4: 4}[step]
        assert checkpoint.load(run.ckpt, ("lm",))["step"] == step
    assert checkpoint.load(run.ckpt, ("lm",))["best"] == 4.0


def test_the_best_checkpoint_is_written_before_the_one_to_resume_from(
    tmp_path, tokenizer, monkeypatch
):
    """Catches an order in which a kill between both loses best.pt for good."""
    run = started(Config(out=str(tmp_path)), tokenizer)
    written = []
    monkeypatch.setattr(checkpoint, "write", lambda state, path: written.append(path.name))
    for _ in run.steps():
        run.record({"val_loss": 1.0}, loss=1.0)
        break
    assert written == ["best.pt", "ckpt.pt"] and rows_of(run)[0]["val_loss"] == "1.0"


def test_a_terminated_run_saves_at_its_next_step_and_goes_on_where_it_was(tmp_path, tokenizer):
    """Catches a lost step, a mean that forgets the steps before the stop, a row written twice."""
    def terminate(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run = started(Config(out=str(tmp_path / "cut")), tokenizer)
    with pytest.raises(SystemExit) as ended:
        train(run, terminate)
    assert ended.value.code == 143
    assert checkpoint.load(run.ckpt, ("lm",))["step"] == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = started(Config(out=str(tmp_path / "cut"), resume=True), tokenizer)
    assert again.start == 5 and train(again) == list(range(5, 10))
    through = started(Config(out=str(tmp_path / "through")), tokenizer)
    train(through)
    for a, b in zip(rows_of(again), rows_of(through), strict=True):
        assert {k: a[k] for k in ("step", "loss", "val_loss")} == {
            k: b[k] for k in ("step", "loss", "val_loss")}


def test_a_run_terminated_while_it_measures_has_written_what_it_measured(tmp_path, tokenizer):
    """Catches an evaluation that is done twice, and a run that ignores the signal."""
    run = started(Config(out=str(tmp_path), steps=4, eval_every=2), tokenizer)
    with pytest.raises(SystemExit):
        for step in run.steps():
            if run.is_due(step):
                if step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                run.record({"val_loss": 1.0}, loss=1.0)
            run.next_batch()
            run.add([], loss=1.0, grad=1.0, lr=1.0)
    assert checkpoint.load(run.ckpt, ("lm",))["step"] == 2
    assert [r["step"] for r in rows_of(run)] == ["0", "2"]


def test_a_resumed_run_is_not_measured_again_where_it_begins(tmp_path, tokenizer):
    """Catches a row that stands twice after --resume."""
    class Stop(Exception):
        """The process ends here."""

    def stop(step: int) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(started(Config(out=str(tmp_path), steps=6, eval_every=2), tokenizer), stop)
    run = started(Config(out=str(tmp_path), steps=6, eval_every=2, resume=True), tokenizer)
    assert run.start == 2 and not run.is_due(2) and run.is_due(4)
    train(run)
    assert [r["step"] for r in rows_of(run)] == ["0", "2", "4", "6"]


def test_a_resumed_run_drops_the_rows_that_it_writes_again(tmp_path, tokenizer):
    """Catches rows behind the checkpoint, and half a row that a full disk left."""
    run = started(Config(out=str(tmp_path)), tokenizer)
    train(run)
    lines = run.csv.read_text().splitlines(keepends=True)
    state = torch.load(run.ckpt, weights_only=True)
    torch.save(state | {"step": 4}, run.ckpt)
    with run.csv.open("a") as f:
        f.write("1")
    again = started(Config(out=str(tmp_path), resume=True), tokenizer)
    assert again.csv.read_text() == "".join(lines[:4])  # the header, steps 0, 2 and 4
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("content", [
    b"", b"step,loss\nx,1\n", b"\xff", b"step,loss\n1.5,1\n", b"\n0,1\n", b"step,lo", b"loss\n0\n",
    b"step,loss\n-7,1\n0,1\n", b"step,loss\n2,1\n0,1\n", b"step,loss\n0,1\n0,1\n",
])
def test_a_damaged_log_is_named(content, tmp_path, tokenizer):
    """Catches int()'s own words, which do not say what file they are about."""
    run = started(Config(out=str(tmp_path)), tokenizer)
    run.csv.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is no log of a run; move it away to res"):
        run._drop_rows_after(3)
    assert run.csv.read_bytes() == content


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_what_led_to_it(tmp_path, tokenizer):
    """Catches hours of training on NaN: step, records and the losses of the last five steps are
    said and saved, not those of PPO's minibatches.
    """
    run = started(Config(out=str(tmp_path)), tokenizer)
    for run.step in run.steps():
        if run.step == 6:
            break
        run.next_batch()
        run.check(100 + run.step, 1.0, ["a"])                        # a minibatch of this step
        run.add(["a"], loss=(6, 5, 4, 3, 2, 1.23456)[run.step], grad=1.0, lr=0.1)
    assert not (tmp_path / "stopped.json").exists()
    run.step = 6
    message = (
        r"loss is nan at step 6; batch \['r0', .*'r7'\]; "
        r"losses before \[5, 4, 3, 2, 1.2346\]; try a lower lr; the whole batch is in "
        r".*stopped.json"
    )
    ids = [f"r{i}" for i in range(20)]
    with pytest.raises(ValueError, match=message):
        run.check(math.nan, math.nan, ids)
    assert json.loads((tmp_path / "stopped.json").read_text()) == {
        "step": 6, "loss": "nan", "grad": "nan", "batch": ids,
        "recent_losses": [5, 4, 3, 2, 1.2346]}
    for loss in (math.inf, -math.inf):
        with pytest.raises(ValueError, match="loss is -?inf at step 6"):
            run.check(loss, 1.0, [])
    with pytest.raises(ValueError, match="gradient is inf at step 6; batch .'a'.; losses before"):
        run.check(1.0, math.inf, ["a"])


# --- means and numbers ---


def test_a_meter_gives_means_and_starts_anew():
    """Catches sums in place of means, and rows that carry the previous row's figures.

    Losses 1, 2, 6 have mean 3; before the first step there is nothing to tell.
    """
    meter = Meter()
    assert meter.means() == {}
    for loss in (1.0, 2.0, 6.0):
        meter.add(loss=loss, lr=0.5)
    assert meter.means() == {"loss": 3.0, "lr": 0.5}
    meter.add(loss=10.0)
    again = Meter()
    again.load_state_dict(meter.state_dict())
    assert meter.means() == again.means() == {"loss": 10.0} and meter.means() == {}


@pytest.mark.parametrize("value, text", [
    (0.0, " 0.0000"), (1.5, " 1.5000"), (-2.25, "-2.2500"), (9e-4, "9.0e-04"), (12345.0, "1.2e+04"),
    (7, "    7"), (float("inf"), "    inf"),
])
def test_numbers_are_printed_in_equal_width(value, text):
    """Catches columns that jump, and small rates printed as 0.0000."""
    assert module._short(value) == text
