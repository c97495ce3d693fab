"""The machine a run uses: device, number format, seed, and where its figures come from."""

import dataclasses
import platform
import re
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from minivlm.running.files import first_line


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
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} is not one of auto, float32, bfloat16")
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
