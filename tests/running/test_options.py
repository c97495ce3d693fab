"""minivlm/running/options.py: the command line, the device, where figures come from."""

import math
import re
import subprocess
from dataclasses import dataclass

import pytest
import torch

from minivlm.running.machine import autocast, environment, pick_device, seed_everything
from minivlm.running.options import check, cli, help_of, obeys, parse_args


@dataclass
class Config:
    """Options of a made-up script."""

    # files
    out: str = "runs/x"  # folder to write
    # optimization
    steps: int = 10  # updates; 100 % of them count
    lr: float = 1e-3  # >= 0; peak rate, AdamW
    share: float = 0.5  # 0 .. 1; of the data
    freeze: bool = True  # keep the ViT as it is
    resume: bool = False  # go on
    init: str = "runs/w"  # where it starts
    dtype: str = "auto"  # auto | float32 | bfloat16; type
    batch_size: int = 8  # rows
    grad_accum: int = 1  # parts
    muon_lr: float = 0.0  # >= 0; peak rate, Muon
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
    for text in ("minivlm/running/options.py: the command line",
                 "--out folder to write (default: runs/x)",
                 "--steps updates; 100 % of them count (default: 10)",
                 "files: --out", "optimization: --steps",
                 "--lr >= 0; peak rate, AdamW (default: 0.001)",
                 "--freeze, --no-freeze keep the ViT as it is (default: True)",
                 "--plain (default: )"):
        assert text in said


@pytest.mark.parametrize("argv, message", [
    (["--step", "3"], "unrecognized arguments: --step 3"),
    (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
    (["--lr"], "argument --lr: expected one argument"),
    (["word"], "unrecognized arguments: word"),
    (["--steps", "0"], "error: steps 0 must be at least 1"),
    (["--lr=-2e-4"], "error: lr is -0.0002, expected >= 0"),
    (["--lr", "nan"], "error: lr is nan, expected >= 0"),
    (["--share", "1.1"], "error: share is 1.1, expected 0 .. 1"),
    (["--init", "runs/x"], "error: init and out are both runs/x; the run would overwrite"),
    (["--lr", "0"], "error: lr and muon_lr are both 0: nothing would learn; to measure only, use"),
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


@pytest.mark.parametrize("source", ["best.pt", "../x/ckpt.pt", "../x/", "."])
def test_a_run_never_overwrites_what_it_starts_from(source, tmp_path):
    """Catches a run that deletes its own beginning, named by another name or as a file."""
    (tmp_path / "x").mkdir()
    for name in ("best.pt", "ckpt.pt"):
        (tmp_path / "x" / name).write_text("weights")
    with pytest.raises(ValueError, match="the run would overwrite what it starts from"):
        check(Config(init=f"{tmp_path}/x/{source}", out=f"{tmp_path}/x"))
    check(Config(init=f"{tmp_path}/x/best.pt", out=f"{tmp_path}/y"))
    check(Config(init=f"{tmp_path}/x", out=f"{tmp_path}/x/next"))


def test_one_rate_of_two_may_be_0():
    """Catches Muon alone or AdamW alone refused: 0 is off for each."""
    check(Config(lr=0.0, muon_lr=0.1))
    check(Config(lr=0.1, muon_lr=0.0))


@pytest.mark.parametrize("rule, good, bad", [
    (">= 0", [0, 0.0, 5], [-1, -1e-9, math.nan]), ("> 0", [1e-9, 3], [0, -1, math.nan]),
    ("0 .. 1", [0, 0.5, 1], [-0.1, 1.1, math.nan]), ("a | bc", ["a", "bc"], ["b", "", "a | bc"]),
])
def test_a_rule_allows_what_it_says(rule, good, bad):
    """Catches a bound that is off by its own value, and NaN that passes every comparison."""
    assert all(obeys(value, rule) for value in good)
    assert not any(obeys(value, rule) for value in bad)


def test_a_comment_that_is_no_rule_is_help_alone():
    """Catches a sentence taken for a rule: "auto, cpu; ..." allows every device."""
    helps = help_of(Config)
    assert helps["out"] == ("folder to write", "", "files")
    assert helps["lr"].rule == ">= 0" and helps["lr"].heading == "optimization"
    assert helps["steps"].rule == "" and helps["dtype"].rule == "auto | float32 | bfloat16"


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
        cli(lambda cfg: (tmp_path / "file" / "ckpt.pt").write_text(""), Config)
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
