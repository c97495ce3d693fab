"""The machine: device, number format, seed, and a description of it for results."""

import dataclasses
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from minivlm.running.files import first_line

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

STATUS = Path("/proc/self/status")  # Linux only


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: if this machine or this build of torch has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # torch.device("cuda:99") alone raises nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device {name!r} is not usable here: {first_line(error)}"
        ) from None
    return device


def is_bfloat16(device: torch.device, dtype: str) -> bool:
    """Whether models compute in bfloat16; "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: if dtype is not auto, float32 or bfloat16.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} is not one of auto, float32, bfloat16")
    if dtype == "auto":
        return device.type == "cuda"  # few CPUs compute fast in bfloat16
    return dtype == "bfloat16"


def autocast(device: torch.device, dtype: str):
    """Return the context in which models compute: bfloat16 if `is_bfloat16` says so.

    Raises:
        ValueError: as `is_bfloat16`.
    """
    if is_bfloat16(device, dtype):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def seed_everything(seed: int, threads: int = 0) -> None:
    """Seed torch's global generators, and set the number of CPU threads.

    The global generators draw initial weights and dropout. Everything that is drawn for the
    data comes from other generators.

    Args:
        threads: number of CPU threads; 0 leaves it as it is.
    """
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)


def environment() -> dict[str, str]:
    """Describe versions, hardware and commit, for env.txt and results/*.json."""
    commit = _git("rev-parse", "--short", "HEAD") or "none"
    # "+" marks uncommitted changes; results/ does not count, a script may be writing there
    if _git("status", "--porcelain", ":/", ":(top,exclude)results"):
        commit += "+"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "commit": commit,
    }


def _git(*args: str) -> str:
    """Return what git prints about this checkout; "" if there is no git or no checkout."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=folder)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    """Return the name of the CPU and, if /proc/cpuinfo tells it, the number of cores."""
    info = Path("/proc/cpuinfo")  # Linux only; platform.processor() is empty there
    if info.is_file():
        names = re.findall(r"model name\s*:\s*(.*)", info.read_text())
        if names:
            return f"{names[0]} x {len(names)}"
    return platform.processor() or platform.machine()


def provenance(cfg, began: float) -> dict:
    """Say how a file of results was made: command, options, machine, minutes, memory.

    Args:
        cfg: the script's Config.
        began: `time.time()` when the script started.
    """
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": dataclasses.asdict(cfg),
        "environment": environment(),
        "minutes": round((time.time() - began) / 60, 2),
        **peak_memory("peak_gb"),
    }


def seconds_of(do: Callable[[], object], n: int, device: torch.device) -> float:
    """Seconds of one of n calls, until the device has done its work."""
    begin = time.perf_counter()
    for _ in range(n):
        do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / n


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s of a large matrix product, the best of five: what can be reached."""
    n = 8192 if device.type == "cuda" else 1024
    # a generator of its own: a training's draws must not depend on a measurement
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, n, generator=generator).to(device, dtype)
    seconds = [seconds_of(lambda: x @ x, 1, device) for _ in range(6)][1:]
    return 2 * n ** 3 / min(seconds)


def peak_memory(name: str, device: torch.device | None = None) -> dict[str, float]:
    """Return the largest memory that this process has used so far, in GB.

    It is main memory; or a GPU's, if `device` is one. Worker processes do not count.

    Returns:
        {name: the figure}, or {} where the system does not tell it, as on Windows.
    """
    if device is not None and device.type == "cuda":
        return {name: round(torch.cuda.max_memory_reserved(device) / 1e9, 2)}
    if STATUS.is_file():  # getrusage would count what a parent process had used before
        found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
        if found:
            return {name: round(int(found[1]) * 1024 / 1e9, 2)}
    if resource is None:
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return {name: round(peak * unit / 1e9, 2)}
