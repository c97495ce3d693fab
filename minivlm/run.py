"""What every script needs before its loop: command line, seed, device, and where figures come from.

Nothing here knows about models.
"""

import argparse
import dataclasses
import inspect
import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from minivlm.files import first_line

LEAST = {
    "steps": 0, "batch_size": 1, "grad_accum": 1, "eval_every": 1, "warmup": 0,
    "lr": 0, "muon_lr": 0, "weight_decay": 0, "grad_clip": 0,
    "threads": 0, "workers": 0, "seed": 0, "n_texts": 0, "shift": 0, "image_size": 0,
    "n_layer": 1, "n_embd": 32, "patch_size": 1, "block_size": 2,
    "epochs": 1, "minibatches": 1, "kl_coef": 0, "kl_target": 0, "kl_horizon": 1, "clip_eps": 0,
    "value_clip": 0, "end_penalty": 0, "length_penalty": 0, "gamma": 0, "lam": 0, "max_kl": 0,
    "margin": 0, "center": 0,
    "value_lr": 0, "vit_rate": 0, "n_val": 1, "per_question": 0, "n_val_pairs": 0, "sft_coef": 0,
    "changed": 0.01, "lora": 0,
    "n_images": 1, "n_questions": 1, "n_describe": 1, "max_new_tokens": 1, "n_beams": 1,
}
CHOICES = {"dtype": ("auto", "float32", "bfloat16"), "projector": ("mlp", "linear", "llava"),
           "objective": ("lm", "prefix_lm", "blip"), "kl": ("k1", "k2", "k3"),
           "kind": ("sigmoid", "robust", "hinge", "ipo")}
# control characters, marks that turn the direction of writing, half characters
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SOURCES = ("init", "clip", "lm", "reward", "vision", "llm")  # options that say what to start from
FREE = ("out", "resume", "steps", "eval_every", "device", "dtype", "compile", "threads", "workers",
        "ref_logps")


def parse_args(cls, argv: list[str] | None = None):
    """Build a command line from a Config dataclass; a field's comment is its help text.

    `--name value` for each field, `--name / --no-name` for booleans. Unknown flags and values that
    `check` or the class refuses (a ValueError in __post_init__) end with one line and exit code 2.
    """
    try:
        source = inspect.getsource(cls)
    except OSError:  # an interactive session has no source file
        source = ""
    help_of = dict(re.findall(r"^\s+(\w+):[^#\n]*#\s*(.*)$", source, flags=re.MULTILINE))
    doc = (sys.modules[cls.__module__].__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.error = lambda said: parser.exit(2, f"{parser.prog}: error: {said}; see --help\n")
    for f in dataclasses.fields(cls):
        text = f"{help_of.get(f.name, '')} (default: {f.default})".replace("%", "%%")
        if f.type in (bool, "bool"):
            parser.add_argument(
                f"--{f.name}", action=argparse.BooleanOptionalAction, default=f.default, help=text
            )
        else:
            parser.add_argument(
                f"--{f.name}", type=type(f.default), default=f.default, help=text, metavar=""
            )
    args = parser.parse_args(argv)
    try:
        cfg = cls(**vars(args))
        check(cfg)
        return cfg
    except ValueError as error:
        parser.error(str(error))


def check(cfg) -> None:
    """Refuse values that no run can use, before anything is read or written.

    Raises:
        ValueError: if a field of a name in LEAST is below its limit or a name in CHOICES is not one
            of them, or if a run would overwrite the one it starts from.
    """
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if f.name in LEAST and not value >= LEAST[f.name]:  # "not >=" refuses nan too
            raise ValueError(f"{f.name} is {value}, expected at least {LEAST[f.name]}")
        if f.name in CHOICES and value not in CHOICES[f.name]:
            raise ValueError(f"{f.name} {value!r} is not one of {', '.join(CHOICES[f.name])}")
        if f.name in SOURCES and value and Path(value).resolve() == Path(cfg.out).resolve():
            raise ValueError(
                f"{f.name} and out are both {value}; the run would overwrite what it starts from"
            )
    parts = getattr(cfg, "grad_accum", 1) * getattr(cfg, "minibatches", 1)
    if parts > getattr(cfg, "batch_size", parts):
        name = "grad_accum" if parts == cfg.grad_accum else "minibatches times grad_accum,"
        raise ValueError(f"{name} {parts} is more than the batch_size of {cfg.batch_size} rows")


def settings(cfg) -> dict:
    """What a resumed run must not change: every option but those of place, speed or length."""
    return {k: v for k, v in dataclasses.asdict(cfg).items() if k not in FREE and k not in SOURCES}


def cli(main: Callable, cls) -> None:
    """Run `main` on the parsed command line; a user's mistake is one line and exit code 2,
    not a traceback.
    """
    cfg = parse_args(cls)
    try:
        main(cfg)
    except (ValueError, OSError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        # torch hands on what a worker raised with the worker's traceback before it
        line = printable(said[-1].removeprefix("ValueError: "), keep="")
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        remedy = "; --resume continues from the last checkpoint" if hasattr(cfg, "resume") else ""
        print(f"\ninterrupted{remedy}", file=sys.stderr)
        raise SystemExit(130) from None


def printable(text: str, keep: str = "\n\t") -> str:
    """A text that a terminal shows and does not obey: signs that steer it are spelled out.

    Control characters, half characters, and what turns the direction of writing.

    >>> printable("red\\x1b[2J ring\\n")
    'red\\\\x1b[2J ring\\n'
    """
    return STEERING.sub(lambda m: m[0] if m[0] in keep else ascii(m[0])[1:-1], text)


def pick_device(name: str) -> torch.device:
    """"auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: for a device this machine or torch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device {name!r} is not usable here: {first_line(error)}"
        ) from None
    return device


def is_bfloat16(device: torch.device, dtype: str) -> bool:
    """"auto" is bfloat16 on a GPU, float32 on a CPU (few CPUs have fast bfloat16).

    Raises:
        ValueError: for another name than auto, float32, bfloat16.
    """
    if dtype not in CHOICES["dtype"]:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(CHOICES['dtype'])}")
    return dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")


def autocast(device: torch.device, dtype: str):
    """Compute context of `is_bfloat16`'s choice, which raises as that does."""
    if is_bfloat16(device, dtype):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def seed_everything(seed: int, threads: int = 0) -> None:
    """Seed torch's global generators (initial weights, dropout); set CPU threads, 0 leaves them."""
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)


def environment() -> dict[str, str]:
    """Versions, hardware and commit, for env.txt and results/*.json."""
    def git(*args: str) -> str:
        try:
            here = Path(__file__).parent
            return subprocess.run(
                ["git", *args], capture_output=True, text=True, cwd=here
            ).stdout.strip()
        except FileNotFoundError:  # no git on this machine
            return ""

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"model name\s*:\s*(.*)", info.read_text())
        cpu = f"{names[0]} x {len(names)}" if names else cpu
    commit = git("rev-parse", "--short", "HEAD") or "none"
    # results/ may change: it is what is being written
    changed = "+" if git("status", "--porcelain", ":/", ":(top,exclude)results") else ""
    return {
        "python": platform.python_version(), "torch": torch.__version__.split("+")[0],
        "cpu": cpu, "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "commit": commit + changed,
    }


def provenance(cfg, began: float) -> dict:
    """What a file of results says of itself, so that its figures can be made again.

    Args:
        cfg: the script's Config.
        began: `time.time()` when it started.
    """
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": dataclasses.asdict(cfg),
        "environment": environment(),
        "minutes": round((time.time() - began) / 60, 2),
        "peak_gb": peak_gb(),
    }


def peak_gb() -> float:
    """The most main memory that this process has held so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 2)  # macOS has bytes, Linux kB
