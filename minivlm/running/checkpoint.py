"""Checkpoints: plain tensors and plain types, written whole or not at all (contract 9).

    {format, stage, configs, model, optimizer, step, best, meter, tokenizer, rng}

`load` starts a next stage or a chat; `resume` continues the same run bit for bit. What a batch
holds is a pure function of (seed, step), so the data need no state of their own.
"""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from minivlm.running.files import first_line
from minivlm.tokenizer import Tokenizer

FORMAT = 1
HOLDS = {"configs": dict, "model": dict, "tokenizer": str, "step": int, "best": float}


def write(state: dict, path: Path) -> None:
    """Save tensors and plain types to a temporary name beside the path first, then rename.

    Whatever ends the process meanwhile, under `path` stands a whole file: the old or the new one.

    Raises:
        OSError: if it cannot be written, say on a full disk; what stood there before still does.
    """
    path = Path(path)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the content
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        temporary.unlink(missing_ok=True)
        kept = "the one before it is intact" if path.is_file() else "there was none before it"
        raise OSError(f"{path} could not be written ({first_line(error)}); {kept}") from None


def save(
    paths: list[Path], *, stage: str, configs: dict, model: nn.Module, tokenizer: Tokenizer,
    step: int, best: float, optimizer=None, meter=None,
) -> None:
    """Write a checkpoint under each path, see `write`.

    Args:
        paths: the one that a run resumes from last: whatever a kill leaves undone before, the
            resumed run does again.
        stage: "lm", "clip", "align", "sft", ...: which script wrote it.
        configs: plain dicts, at least {"model": ...} with what rebuilds the model.
        best: best validation figure so far.
        meter: what has been measured since the last row of the log.
    """
    state = {
        "format": FORMAT, "stage": stage, "configs": configs, "step": step, "best": float(best),
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "meter": None if meter is None else meter.state_dict(),
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

    Returns:
        what `save` wrote, and "file", its name for messages.

    Raises:
        FileNotFoundError: if there is none, with the script that makes it.
        ValueError: if the file is damaged, holds more than plain types, would grow in memory, lacks
            what `save` writes, or is of another stage.
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
        _check_size(file)
        state = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors and plain types, or is no checkpoint; not loaded"
        ) from None
    except Exception as error:  # a damaged archive can break anywhere inside torch's reader
        remedy = "train this stage again"
        if file.name == "ckpt.pt" and (file.parent / "best.pt").is_file():
            remedy += ", or start another from best.pt beside it"
        said = first_line(error).split(". ")[0]
        raise ValueError(f"{file} is damaged ({said}); {remedy}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{file} is no minivlm checkpoint of format {FORMAT}")
    if state.get("stage") not in stages:
        raise ValueError(
            f"{file} is a checkpoint of stage {state.get('stage')!r}, expected "
            f"{' or '.join(stages)}"
        )
    for key, kind in HOLDS.items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{file} has no {key} as a training script saves it")
    weights = list(state["model"].values())
    if not all(isinstance(w, Tensor) and w.layout == torch.strided for w in weights):
        raise ValueError(f"{file} has weights that are no plain tensors")
    if sum(w.nbytes for w in weights) > 2 * file.stat().st_size:  # twice: a tied head
        raise ValueError(f"{file} has weights larger than itself; not loaded")
    return state | {"file": str(file)}


def _check_size(file: Path) -> None:
    """Refuse an archive that grows when it is read; torch packs nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        if any(p.compress_type for p in parts) or (
                sum(p.file_size for p in parts) > file.stat().st_size):
            raise ValueError("it grows when unpacked")


def fingerprint(state: dict) -> str:
    """Names the weights of a checkpoint: 12 hexadecimal digits of their hash."""
    seen = hashlib.sha256()
    for name, tensor in sorted(state["model"].items()):
        seen.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()[:12]


def equal(a: object, b: object) -> bool:
    """Whether two checkpoints, or parts of them, hold the same bits: types, numbers, tensors."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def resume(
    path: Path, stage: str, configs: dict, model: nn.Module, optimizer, meter
) -> tuple[int, float]:
    """Restore model, optimizer, meter and random generators.

    Returns:
        the next step and the best figure so far.

    Raises:
        ValueError: if the checkpoint was made with other settings, naming what differs, or what it
            holds does not fit them.
    """
    state = load(path, (stage,))
    if state["configs"] != configs:
        differ = sorted(
            k for k in configs | state["configs"] if state["configs"].get(k) != configs.get(k)
        )
        if not any(k in state["configs"] for k in differ):
            raise ValueError(f"{path} is older than {', '.join(differ)}, which it says nothing of; "
                             "train this stage again")
        raise ValueError(
            f"{path} was trained with other settings of {', '.join(differ)}; "
            "resume with the same ones"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if state.get("meter"):  # none in files of before this entry, all written just after a row
            meter.load_state_dict(state["meter"])
        torch.set_rng_state(state["rng"]["torch"])
        if torch.cuda.is_available() and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    except (RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be resumed from: {first_line(error)}") from None
    return state["step"], state["best"]
