"""Checkpoints: plain tensors and plain types, written whole or not at all (contract 9).

    {format, stage, configs, model, optimizer, step, best, tokenizer, rng}

`load` starts a next stage or a chat; `resume` continues the same run bit for bit. What a batch
holds is a pure function of (seed, step), so the data need no state of their own.
"""

import hashlib
import os
import pickle
from pathlib import Path

import torch
from torch import nn

from minivlm.tokenizer import Tokenizer

FORMAT = 1


def write(state: dict, path: Path) -> None:
    """Save tensors and plain types to a temporary name beside the path first, then rename."""
    temporary = Path(path).with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def save(
    paths: list[Path], *, stage: str, configs: dict, model: nn.Module, tokenizer: Tokenizer,
    step: int, best: float, optimizer=None,
) -> None:
    """Write a checkpoint under each path, see `write`.

    Args:
        stage: "lm", "clip", "align", "sft", ...: which script wrote it.
        configs: plain dicts, at least {"model": ...} with what rebuilds the model.
        best: best validation figure so far.
    """
    state = {
        "format": FORMAT, "stage": stage, "configs": configs, "step": step, "best": float(best),
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "tokenizer": tokenizer.to_text(),
        "rng": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }
    for path in paths:
        write(state, path)


def load(path: Path, stages: tuple[str, ...], device: torch.device | str = "cpu") -> dict:
    """Read a checkpoint and check that it is one this caller can use.

    Args:
        path: a run folder (its best.pt, else its ckpt.pt) or a file.
        stages: acceptable stages.

    Raises:
        FileNotFoundError: if there is none, with the script that makes it.
        ValueError: if the file is damaged, holds more than plain types, or is of another stage.
    """
    path = Path(path)
    file = path
    if path.is_dir() or not path.suffix:
        file = next(
            (f for f in (path / "best.pt", path / "ckpt.pt") if f.is_file()), path / "ckpt.pt"
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}; "
            f"run {' or '.join(f'train_{stage}.py' for stage in stages)} first, "
            "or name another folder"
        )
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors and plain types, or is no checkpoint; not loaded"
        ) from None
    except Exception as error:  # a damaged archive can break anywhere inside torch's reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} is damaged ({reason}); train this stage again") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{file} is no minivlm checkpoint of format {FORMAT}")
    if state["stage"] not in stages:
        raise ValueError(
            f"{file} is a checkpoint of stage {state['stage']!r}, expected {' or '.join(stages)}"
        )
    return state


def fingerprint(state: dict) -> str:
    """Names the weights of a checkpoint: 12 hexadecimal digits of their hash."""
    seen = hashlib.sha256()
    for name, tensor in sorted(state["model"].items()):
        seen.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()[:12]


def resume(
    path: Path, stage: str, configs: dict, model: nn.Module, optimizer, device
) -> tuple[int, float]:
    """Restore model, optimizer and random generators; return the next step and the best figure.

    Raises:
        ValueError: if the checkpoint was made with another architecture, naming what differs.
    """
    state = load(path, (stage,), device)
    if state["configs"] != configs:
        differ = sorted(
            k for k in configs | state["configs"] if state["configs"].get(k) != configs.get(k)
        )
        raise ValueError(
            f"{path} was trained with other settings of {', '.join(differ)}; "
            "resume with the same ones"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]["torch"].cpu())
    if torch.cuda.is_available() and state["rng"]["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["rng"]["cuda"]])
    return state["step"], state["best"]
