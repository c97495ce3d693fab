"""minivlm/run.py: the command line, the device, the run folder and its log."""

import csv
import json
import math
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from minivlm import run
from minivlm.run import (
    Meter, Run, autocast, cli, environment, parse_args, pick_device, seed_everything,
)


@dataclass
class Config:
    """Options of a made-up script."""

    out: str = "runs/x"  # folder to write
    steps: int = 10  # updates; 100 % of them count
    lr: float = 1e-3  # peak rate, AdamW
    freeze: bool = True  # keep the ViT as it is
    resume: bool = False  # go on
    init: str = "runs/w"  # where it starts
    dtype: str = "auto"  # type
    batch_size: int = 8  # rows
    grad_accum: int = 1  # parts
    plain: str = ""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} must be at least 1")


# --- command line ---


def test_without_flags_every_default_holds():
    """Catches a parser whose defaults differ from the class's."""
    assert parse_args(Config, []) == Config()


def test_values_arrive_with_their_types():
    """Catches `type=bool`, an int where a float is meant, and a value cut at its second "="."""
    cfg = parse_args(Config, ["--steps", "3", "--lr", "1", "--out=a=b", "--no-freeze", "--resume"])
    assert cfg == Config(out="a=b", steps=3, lr=1.0, freeze=False, resume=True)
    assert type(cfg.lr) is float
    assert (
        parse_args(Config, ["--freeze"]).freeze is True
        and parse_args(Config, ["--lr=2e-4"]).lr == 2e-4
    )


def test_help_is_made_of_the_comments(capsys):
    """Catches help text that is lost, belongs to the neighbor, or breaks at a percent sign."""
    with pytest.raises(SystemExit) as done:
        parse_args(Config, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    for text in ("minivlm/run.py: the command line", "--out folder to write (default: runs/x)",
                 "--steps updates; 100 % of them count (default: 10)",
                 "--lr peak rate, AdamW (default: 0.001)",
                 "--freeze, --no-freeze keep the ViT as it is (default: True)",
                 "--plain (default: )"):
        assert text in said


@pytest.mark.parametrize("argv, message", [
    (["--step", "3"], "unrecognized arguments: --step 3"),
    (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
    (["--lr"], "argument --lr: expected one argument"),
    (["word"], "unrecognized arguments: word"),
    (["--steps", "0"], "error: steps 0 must be at least 1"),
    (["--lr=-2e-4"], "error: lr is -0.0002, expected at least 0"),
    (["--lr", "nan"], "error: lr is nan, expected at least 0"),
    (["--init", "runs/x"], "error: init and out are both runs/x; the run would overwrite"),
    (["--dtype", "half"], "error: dtype 'half' is not one of auto, float32, bfloat16"),
    (["--grad_accum", "9"], "error: grad_accum 9 is more than the batch_size of 8 rows"),
])
def test_a_wrong_flag_ends_with_one_line_and_code_2(argv, message, capsys):
    """Catches abbreviations taken for flags, and tracebacks for a value that the class refuses."""
    with pytest.raises(SystemExit) as done:
        parse_args(Config, argv)
    said = capsys.readouterr().err
    assert done.value.code == 2 and message in said and "Traceback" not in said
    assert len(said.splitlines()) == 1 and "error:" in said


def test_a_class_without_source_still_parses():
    """Catches a crash in a notebook, where no source file exists: help is empty there."""
    space = {"__name__": __name__}
    exec("from dataclasses import dataclass\n@dataclass\nclass Typed:\n    n: int = 1\n", space)
    space["Typed"].__qualname__ = "Typed"
    assert parse_args(space["Typed"], ["--n", "4"]).n == 4


@pytest.mark.parametrize("error", [ValueError("no such thing"), FileNotFoundError("no such thing")])
def test_a_users_mistake_is_one_line_and_code_2(error, monkeypatch, capsys):
    """Catches a traceback for a wrong path or value."""
    def main(cfg):
        raise error

    monkeypatch.setattr("sys.argv", ["some/train_x.py", "--steps", "2"])
    with pytest.raises(SystemExit) as done:
        cli(main, Config)
    assert done.value.code == 2 and capsys.readouterr().err == "train_x.py: error: no such thing\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    """Catches a handler so wide that it hides our own mistakes; an interrupt ends with code 130."""
    def main(cfg):
        raise [KeyError("bug"), KeyboardInterrupt()][cfg.steps - 1]

    monkeypatch.setattr("sys.argv", ["train_x.py", "--steps", "1"])
    with pytest.raises(KeyError):
        cli(main, Config)
    monkeypatch.setattr("sys.argv", ["train_x.py", "--steps", "2"])
    with pytest.raises(SystemExit) as done:
        cli(main, Config)
    assert done.value.code == 130


def test_the_parsed_config_reaches_main(monkeypatch):
    """Catches a main that runs on defaults."""
    got = []
    monkeypatch.setattr("sys.argv", ["train_x.py", "--steps", "5"])
    cli(got.append, Config)
    assert got == [Config(steps=5)]


def test_an_output_folder_that_cannot_be_made_is_one_line(monkeypatch, capsys, tmp_path):
    """Catches a traceback when --out names a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["train_x.py", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as done:
        cli(lambda cfg: Run(cfg, __file__).begin(0), Config)
    assert done.value.code == 2 and "train_x.py: error:" in capsys.readouterr().err


# --- device ---


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    """Catches a GPU left idle, or asked for where there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu") == pick_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu:x"])
def test_an_unusable_device_is_named(name):
    """Catches a traceback out of torch, and a device that fails only at the first tensor."""
    with pytest.raises(ValueError, match=f"device '{name}' is not usable here: ."):
        pick_device(name)


@pytest.mark.parametrize("name", ["hpu", "privateuseone"])
def test_a_device_that_needs_another_package_is_refused_alike(name):
    """Catches the ModuleNotFoundError that torch raises for these two."""
    with pytest.raises(ValueError, match=f"device '{name}' is not usable here"):
        pick_device(name)


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu():
    """Catches bfloat16 on CPUs without units for it, where it is fifty times slower."""
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    for dtype, wanted in (
        ("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16),
    ):
        with autocast(cpu, dtype):
            assert (x @ x).dtype == wanted
    assert (x @ x).dtype == torch.float32
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(torch, "autocast", lambda *args: asked.append(args))
        autocast(torch.device("cuda"), "auto")
        autocast(torch.device("cuda"), "float32")
    assert asked == [("cuda", torch.bfloat16)]


@pytest.mark.parametrize("dtype", ["float16", "bf16", ""])
def test_another_dtype_is_refused(dtype):
    """Catches a misspelled type that computes in another one."""
    with pytest.raises(ValueError, match=f"dtype '{dtype}' is not one of auto, float32, bfloat16"):
        autocast(torch.device("cpu"), dtype)


def test_a_seed_fixes_the_random_numbers():
    """Catches a seed that is not set; 0 threads leave the number as it is."""
    threads = torch.get_num_threads()
    seed_everything(5)
    first = torch.randn(3)
    seed_everything(5, threads=threads)
    assert torch.equal(first, torch.randn(3)) and torch.get_num_threads() == threads
    seed_everything(6)
    assert not torch.equal(first, torch.randn(3))


def test_the_environment_names_versions_and_hardware():
    """Catches an env.txt from which no number can be explained; all values are text for JSON."""
    found = environment()
    assert set(found) == {"python", "torch", "cpu", "threads", "gpu", "commit"}
    assert all(isinstance(v, str) and v for v in found.values())
    assert re.fullmatch(r"none|[0-9a-f]{7,}\+?", found["commit"])


def test_a_machine_without_git_can_train(monkeypatch):
    """Catches a run that needs git: a slim container has none, the checkout came as an archive."""
    def no_git(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory", "git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment()["commit"] == "none"


# --- run folder ---


def test_a_run_folder_says_how_it_was_made(tmp_path, monkeypatch):
    """Catches a run that cannot be repeated: options, command, versions and script are kept."""
    monkeypatch.setattr("sys.argv", ["here/train_x.py", "--lr", "0.5"])
    out = tmp_path / "deep" / "run"
    made = Run(Config(out=str(out), lr=0.5), __file__)
    assert not out.exists()
    made.begin(0)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "env.txt", "test_run.py"]
    assert json.loads((out / "config.json").read_text()) == {
        "out": str(out), "steps": 10, "lr": 0.5, "freeze": True, "resume": False, "init": "runs/w",
        "dtype": "auto", "batch_size": 8, "grad_accum": 1, "plain": ""}
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
    log = Run(Config(out=str(tmp_path)), __file__)
    assert (
        all((tmp_path / name).read_text() == "old" for name in old)
        and len(list(tmp_path.iterdir())) == 4
    )
    log.begin(0)
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


def rows_of(log: Run) -> list[dict]:
    return list(csv.DictReader(log.csv.open()))


def test_the_log_is_a_table_and_a_line_on_the_screen(tmp_path, capsys, monkeypatch):
    """Catches columns that shift when a row has fewer keys, and figures printed without names."""
    monkeypatch.setattr(run, "peak_gb", lambda: 0.5)
    log = Run(Config(out=str(tmp_path)), __file__)
    log.log({"step": 0, "loss": "", "val": 4.625})
    log.log({"val": 1e-5, "step": 10, "loss": 2.5})
    log.log({"step": 20, "val": float("nan")})
    assert log.csv.read_text() == (
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
    log = Run(Config(out=str(tmp_path)), __file__)
    for step in (0, 6, 8, 9):
        log.log({"step": step, "loss": 1.0})
    (tmp_path / "ckpt.pt").write_text("old")
    with log.csv.open("a") as f:
        f.write("1")  # a full disk cut off the row of step 10
    log = Run(Config(out=str(tmp_path), resume=True), __file__)
    assert len(rows_of(log)) == 5
    log.begin(6)
    assert [r["step"] for r in rows_of(log)] == ["0", "6"]
    assert not list(tmp_path.glob("*.tmp"))
    log.log({"step": 8, "loss": 0.5})
    assert rows_of(log)[-1]["loss"] == "0.5"


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_what_led_to_it(tmp_path):
    """Catches hours of training on NaN: step, records and last five losses are said and saved."""
    log = Run(Config(out=str(tmp_path)), __file__)
    for step, loss in enumerate((6, 5, 4, 3, 2, 1.23456)):
        log.check(loss, 1.0, step, ["a"])
    assert not list(tmp_path.iterdir())
    message = (
        r"loss is nan at step 6; batch \['r0', .*'r7'\]; "
        r"before it \[5, 4, 3, 2, 1.2346\]; try a lower lr; all of it is in .*stopped.json"
    )
    ids = [f"r{i}" for i in range(20)]
    with pytest.raises(ValueError, match=message):
        log.check(math.nan, math.nan, 6, ids)
    assert json.loads((tmp_path / "stopped.json").read_text()) == {
        "step": 6, "loss": "nan", "grad": "nan", "batch": ids,
        "recent_losses": [5, 4, 3, 2, 1.2346]}
    for loss in (math.inf, -math.inf):
        with pytest.raises(ValueError, match="loss is -?inf at step 0"):
            log.check(loss, 1.0, 0, [])
    with pytest.raises(ValueError, match="gradient is inf at step 2; batch .'a'.; before it"):
        log.check(1.0, math.inf, 2, ["a"])


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
    assert run._short(value) == text
