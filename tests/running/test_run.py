"""minivlm/running/run.py: the run folder, its log, and what stops a run."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from minivlm.running import run as log
from minivlm.running.run import Meter, Run


@dataclass
class Config:
    """Options of a made-up script."""

    out: str = "runs/x"
    steps: int = 10
    lr: float = 1e-3
    resume: bool = False


def test_a_run_folder_says_how_it_was_made(tmp_path, monkeypatch):
    """Catches a run that cannot be repeated: options, command, versions and script are kept."""
    monkeypatch.setattr("sys.argv", ["here/train_x.py", "--lr", "0.5"])
    out = tmp_path / "deep" / "run"
    made = Run(Config(out=str(out), lr=0.5), __file__)
    assert not out.exists()
    made.begin(0)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "env.txt", "test_run.py"]
    assert json.loads((out / "config.json").read_text()) == {
        "out": str(out), "steps": 10, "lr": 0.5, "resume": False}
    env = dict(line.split(": ", 1) for line in (out / "env.txt").read_text().splitlines())
    assert (
        env["command"] == "train_x.py --lr 0.5"
        and env["torch"] == torch.__version__.split("+")[0]
    )
    assert (out / "test_run.py").read_text() == Path(__file__).read_text()
    assert (made.ckpt, made.best, made.csv) == (
        out / "ckpt.pt", out / "best.pt", out / "metrics.csv"
    )
    assert 0 <= made.minutes < 1


def test_a_fresh_run_drops_the_old_ones_results_when_it_begins(tmp_path):
    """Catches a new curve appended to an old one, and a mistyped option that costs the old run."""
    old = ("metrics.csv", "ckpt.pt", "best.pt", "notes.txt")
    for name in old:
        (tmp_path / name).write_text("old")
    made = Run(Config(out=str(tmp_path)), __file__)
    assert (
        all((tmp_path / name).read_text() == "old" for name in old)
        and len(list(tmp_path.iterdir())) == 4
    )
    made.begin(0)
    assert [name for name in old if (tmp_path / name).exists()] == ["notes.txt"]


def test_a_resumed_run_keeps_them(tmp_path):
    """Catches --resume that deletes what it should go on with."""
    for name in ("ckpt.pt", "best.pt"):
        (tmp_path / name).write_text("old")
    Run(Config(out=str(tmp_path), resume=True), __file__).begin(3)
    assert all((tmp_path / n).read_text() == "old" for n in ("ckpt.pt", "best.pt"))


@pytest.mark.parametrize("start", [10, 12])
def test_resuming_a_finished_run_is_refused(start, tmp_path):
    """Catches an empty loop that ends as if all were well."""
    (tmp_path / "ckpt.pt").write_text("old")
    with pytest.raises(
        ValueError, match=f"is at step {start} already, nothing is left of 10 steps"
    ):
        Run(Config(out=str(tmp_path), resume=True), __file__).begin(start)


def test_resuming_nothing_is_refused(tmp_path):
    """Catches --resume that silently starts anew; nothing is written either."""
    with pytest.raises(ValueError, match="nothing to resume in .*new: it has no ckpt.pt"):
        Run(Config(out=str(tmp_path / "new"), resume=True), __file__)
    assert not (tmp_path / "new").exists()


def rows_of(made: Run) -> list[dict]:
    return list(csv.DictReader(made.csv.open()))


def test_the_log_is_a_table_and_a_line_on_the_screen(tmp_path, capsys, monkeypatch):
    """Catches columns that shift when a row has fewer keys, and figures printed without names."""
    monkeypatch.setattr(log, "peak_gb", lambda: 0.5)
    made = Run(Config(out=str(tmp_path)), __file__)
    made.log({"step": 0, "loss": "", "val": 4.625})
    made.log({"val": 1e-5, "step": 10, "loss": 2.5})
    made.log({"step": 20, "val": float("nan")})
    assert made.csv.read_text() == (
        "step,loss,val,gb,min\n"
        "0,,4.625,0.5,0.0\n"
        "10,2.5,1e-05,0.5,0.0\n"
        "20,,nan,0.5,0.0\n"
    )
    said = capsys.readouterr()
    lines = [
        line.split() for line in (said.out + said.err).splitlines()
        if line.startswith(("step", "val"))
    ]
    assert lines[0] == ["step", "0", "val", "4.6250", "gb", "0.5000", "min", "0.0000"]
    assert (
        lines[1][:-4] == ["val", "1.0e-05", "step", "10", "loss", "2.5000"]
        and lines[2][-5] == "nan"
    )


def test_a_resumed_run_drops_the_rows_that_it_writes_again(tmp_path):
    """Catches rows that stand twice after --resume: the checkpoint of step 6 knows rows 0 and 6."""
    made = Run(Config(out=str(tmp_path)), __file__)
    for step in (0, 6, 8, 9):
        made.log({"step": step, "loss": 1.0})
    (tmp_path / "ckpt.pt").write_text("old")
    with made.csv.open("a") as f:
        f.write("1")  # a full disk cut off the row of step 10
    made = Run(Config(out=str(tmp_path), resume=True), __file__)
    assert len(rows_of(made)) == 5
    made.begin(6)
    assert [r["step"] for r in rows_of(made)] == ["0", "6"]
    assert not list(tmp_path.glob("*.tmp"))
    made.log({"step": 8, "loss": 0.5})
    assert rows_of(made)[-1]["loss"] == "0.5"


@pytest.mark.parametrize("content", [
    b"", b"step,loss\nx,1\n", b"\xff", b"step,loss\n1.5,1\n", b"\n0,1\n", b"step,lo", b"loss\n0\n",
    b"step,loss\n-7,1\n0,1\n", b"step,loss\n2,1\n0,1\n", b"step,loss\n0,1\n0,1\n",
])
def test_a_damaged_log_is_named(content, tmp_path):
    """Catches int()'s own words, which do not say what file they are about."""
    (tmp_path / "ckpt.pt").write_text("old")
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv is no log of a run; move it away to res"):
        Run(Config(out=str(tmp_path), resume=True), __file__).begin(3)
    assert (tmp_path / "metrics.csv").read_bytes() == content


def test_a_column_that_the_log_has_not_is_named_with_it(tmp_path):
    """Catches csv's own words, which name no file."""
    made = Run(Config(out=str(tmp_path)), __file__)
    made.log({"step": 0, "loss": 1.0})
    with pytest.raises(ValueError, match=r"metrics\.csv has no columns other"):
        made.log({"step": 1, "other": 1.0})


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_what_led_to_it(tmp_path):
    """Catches hours of training on NaN: step, records and last five losses are said and saved."""
    made = Run(Config(out=str(tmp_path)), __file__)
    for step, loss in enumerate((6, 5, 4, 3, 2, 1.23456)):
        made.check(loss, 1.0, step, ["a"])
    assert not list(tmp_path.iterdir())
    message = (
        r"loss is nan at step 6; batch \['r0', .*'r7'\]; "
        r"before it \[5, 4, 3, 2, 1.2346\]; try a lower lr; all of it is in .*stopped.json"
    )
    ids = [f"r{i}" for i in range(20)]
    with pytest.raises(ValueError, match=message):
        made.check(math.nan, math.nan, 6, ids)
    assert json.loads((tmp_path / "stopped.json").read_text()) == {
        "step": 6, "loss": "nan", "grad": "nan", "batch": ids,
        "recent_losses": [5, 4, 3, 2, 1.2346]}
    for loss in (math.inf, -math.inf):
        with pytest.raises(ValueError, match="loss is -?inf at step 0"):
            made.check(loss, 1.0, 0, [])
    with pytest.raises(ValueError, match="gradient is inf at step 2; batch .'a'.; before it"):
        made.check(1.0, math.inf, 2, ["a"])


def test_a_meter_gives_means_and_starts_anew():
    """Catches sums in place of means, and rows that carry the previous row's figures.

    Losses 1, 2, 6 have mean 3; before the first step there is nothing to tell.
    """
    meter = Meter()
    assert meter.means(("loss", "lr")) == {"loss": "", "lr": ""}
    for loss in (1.0, 2.0, 6.0):
        meter.add(loss=loss, lr=0.5)
    assert meter.means(("lr", "loss")) == {"lr": 0.5, "loss": 3.0}
    meter.add(loss=10.0, lr=1.0)
    assert meter.means(("loss",)) == {"loss": 10.0} and meter.means(("loss",)) == {"loss": ""}


@pytest.mark.parametrize("value, text", [
    (0.0, " 0.0000"), (1.5, " 1.5000"), (-2.25, "-2.2500"), (9e-4, "9.0e-04"), (12345.0, "1.2e+04"),
    (7, "    7"), ("x", "x"), (float("inf"), "    inf"),
])
def test_numbers_are_printed_in_equal_width(value, text):
    """Catches columns that jump, and small rates printed as 0.0000."""
    assert log._short(value) == text
