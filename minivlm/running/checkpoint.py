"""Checkpoints: a model, and all that its run needs to continue, in one file.

    {format, stage, configs, model, optimizer, step, best, meter, tokenizer, rng}

`save` writes such a file. `load` reads it, for the next stage or for a chat. `resume`
restores a run from it, bit for bit. The batch of a step depends on (seed, step) alone, so a
checkpoint needs no position in the data.

A checkpoint holds only tensors and plain types, so no code runs when it is read. It is
written completely or not at all (contract 9).
"""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from minivlm.running.files import brief, first_line
from minivlm.running.options import (
    ADDED, ADDED_CLIP, ADDED_GPT, ADDED_VIT, FREE, RETIRED,
)
from minivlm.tokenizer import Tokenizer

FORMAT = 1  # `load` refuses every other number
# the entries that `load` insists on, with their types
HOLDS = {"configs": dict, "model": dict, "tokenizer": str, "step": int, "best": float}


# --- writing ---


def write(state: dict, path: Path) -> None:
    """Write a checkpoint to a temporary file beside `path`, then rename it to `path`.

    Whenever the process is killed, `path` is a complete file: the old one or the new one.

    Raises:
        OSError: if the file cannot be written, as on a full disk; the old file stays.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # the content must reach the disk before the new name does
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as either
        # an incomplete file would only fill the disk
        temporary.unlink(missing_ok=True)
        old = "the old one is intact" if path.is_file() else "there was none before"
        raise OSError(f"{path} could not be written ({first_line(error)}); {old}") from None


def save(
    paths: list[Path], *, stage: str, configs: dict, model: nn.Module, tokenizer: Tokenizer,
    step: int, best: float, optimizer=None, meter=None,
) -> None:
    """Write the same checkpoint to each path, in the order of `paths`.

    Put best.pt first and ckpt.pt last. If the process is killed in between, the run resumes
    from the older ckpt.pt and writes best.pt again.

    Args:
        stage: names the script that trains: "lm", "clip", "align", "sft", ...
        configs: plain dicts; the model is rebuilt from configs["model"].
        step: the next step to take.
        best: the held-out loss of best.pt, see `Run.record`.
        meter: the run's Meter: sums since the last row of the log.

    Raises:
        OSError: as `write`.
    """
    cuda_rng = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    state = {
        "format": FORMAT, "stage": stage, "configs": configs, "step": step,
        "best": float(best),  # a tensor or a NumPy number is no plain type
        "model": model.state_dict(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "meter": None if meter is None else meter.state_dict(),
        "tokenizer": tokenizer.to_text(),
        "rng": {"torch": torch.get_rng_state(), "cuda": cuda_rng},
    }
    for path in paths:
        write(state, path)


# --- reading ---


def load(path: Path, stages: tuple[str, ...], device: torch.device | str = "cpu") -> dict:
    """Read a checkpoint; check that it is complete and comes from one of these stages.

    Args:
        path: a checkpoint file or a run folder. In a folder best.pt is read, or ckpt.pt if
            there is no best.pt.
        stages: the stages whose checkpoints the caller can use.
        device: where the tensors are put.

    Returns:
        the dict that `save` wrote, with the file's path added as "file", for messages.

    Raises:
        FileNotFoundError: if there is no checkpoint; the message names a script that makes
            such a checkpoint.
        ValueError: if the file is damaged, holds more than tensors and plain types, would
            take up far more memory than its size, lacks an entry, or is of another stage.
    """
    file = _file_of(Path(path))
    if not file.is_file():
        scripts = " or ".join(f"train_{stage}.py" for stage in stages)
        raise FileNotFoundError(
            f"no checkpoint at {path}; run {scripts} first, or name another folder"
        )
    state = _read(file, device)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{file} is no minivlm checkpoint of format {FORMAT}")
    stage = state.get("stage")
    if stage not in stages:
        raise ValueError(
            f"{file} is a checkpoint of stage {brief(stage)}, "
            f"expected {' or '.join(stages)}"
        )
    for key, kind in HOLDS.items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{file} has no {key}, or one that no training script saves")
    weights = list(state["model"].values())
    if not all(isinstance(w, Tensor) and w.layout == torch.strided for w in weights):
        raise ValueError(f"{file} has weights that are not dense tensors")
    # a tied head shares its storage with the embedding: the sum counts both, the file one
    if sum(w.nbytes for w in weights) > 2 * file.stat().st_size:
        raise ValueError(f"{file} has weights larger than the file; not loaded")
    return state | {"file": str(file)}


def tokenizer_of(state: dict) -> Tokenizer:
    """Return the tokenizer of a checkpoint or of published weights.

    Raises:
        ValueError: if there is none, or it is none.
    """
    if "tokenizer" not in state:
        raise ValueError("the published language model comes without a tokenizer.json")
    return Tokenizer.from_text(
        state["tokenizer"], f"the tokenizer in {state.get('file', 'the published folder')}"
    )


def _file_of(path: Path) -> Path:
    """Find the checkpoint file that a path stands for."""
    if path.suffix and not path.is_dir():
        return path
    best = path / "best.pt"
    return best if best.is_file() else path / "ckpt.pt"


def _read(file: Path, device: torch.device | str):
    """Return the content of a checkpoint file, not yet checked; raises as `load`."""
    try:
        _check_size(file)
        # without weights_only, pickle would run any program that the file contains
        return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors and plain types, or is no checkpoint; "
            "not loaded"
        ) from None
    except Exception as error:  # a damaged archive can raise anything inside torch's reader
        remedy = "train this stage again"
        if file.name == "ckpt.pt" and (file.parent / "best.pt").is_file():
            remedy += ", or start another run from best.pt beside it"
        reason = first_line(error).split(". ")[0]
        raise ValueError(f"{file} is damaged ({reason}); {remedy}") from None


def _check_size(file: Path) -> None:
    """Refuse a zip archive that grows when it is unpacked: torch.save does not compress."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    total = sum(part.file_size for part in parts)
    if total > file.stat().st_size or any(part.compress_type for part in parts):
        raise ValueError("it grows when unpacked")


# --- comparing ---


def fingerprint(state: dict) -> str:
    """Return 12 hexadecimal digits that identify the weights of a checkpoint.

    Args:
        state: as `load` returns it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state["model"].items()):
        if tensor.dtype.itemsize == 2:  # equal values have one fingerprint
            tensor = tensor.float()
        digest.update(name.encode() + bytes_of(tensor).numpy().tobytes())
    return digest.hexdigest()[:12]


def equal(a: object, b: object) -> bool:
    """Whether two checkpoints, or two parts of them, are the same, bit by bit.

    0.0 differs from -0.0, and NaN is equal to NaN.
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(bytes_of(a), bytes_of(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return a == b


def bytes_of(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor in order, (n,) uint8 on the CPU."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8)


# --- resuming ---


def resume(
    path: Path, stage: str, configs: dict, model: nn.Module, optimizer, meter
) -> tuple[int, float]:
    """Restore model, optimizer, meter and random generators from a checkpoint, in place.

    Args:
        configs: the settings of the run that resumes; they must equal the saved ones.

    Returns:
        the next step to take, and the held-out loss of best.pt.

    Raises:
        FileNotFoundError, ValueError: as `load`.
        ValueError: if saved settings differ, which the message names; or if the file's
            content does not fit model, optimizer or meter.
    """
    state = load(path, (stage,))
    saved = saved_settings(state, configs)
    if saved != configs:
        differ = sorted(k for k in configs | saved if saved.get(k) != configs.get(k))
        names = ", ".join(differ)
        if "grad_accum" in differ:
            names += " (blip compares the pairs within a micro-batch)"
        if saved.keys().isdisjoint(differ):
            raise ValueError(
                f"{path} is older than the settings {names} and has none; "
                "train this stage again"
            )
        raise ValueError(
            f"{path} was trained with other settings of {names}; resume with the same ones"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        # a file without this entry is old, and was written just after a row of the log
        if state.get("meter"):
            meter.load_state_dict(state["meter"])
        torch.set_rng_state(state["rng"]["torch"])
        if torch.cuda.is_available() and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    except (RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be resumed from: {first_line(error)}") from None
    return state["step"], state["best"]


def saved_settings(state: dict, configs: dict) -> dict:
    """Return a checkpoint's settings as this version would have saved them.

    Args:
        state: as `load` returns it.
        configs: the settings of the run that resumes. Another name for the same data folder
            becomes the name that this run uses.

    Raises:
        ValueError: if the checkpoint's tokenizer is none.
    """
    saved = {name: value for name, value in ADDED.items() if name in configs}
    for name, value in state["configs"].items():
        retired = name in RETIRED and RETIRED[name] == value
        free = name in FREE and name not in configs
        if not retired and not free:
            saved[name] = value
    if isinstance(saved.get("model"), dict):
        model = saved["model"] = dict(saved["model"])
        if "block_size" in model:  # a GPT
            model |= ADDED_GPT | model
        elif "text_block_size" in model:  # a CLIP
            model |= ADDED_CLIP | model
        for part, added in (("gpt", ADDED_GPT), ("vit", ADDED_VIT)):
            if isinstance(model.get(part), dict):
                model[part] = added | model[part]
    folder = saved.get("data")
    if isinstance(folder, str) and "data" in configs:
        if Path(folder).resolve() == Path(configs["data"]).resolve():
            saved["data"] = configs["data"]
    if "tokenizer" in configs:  # an older train_lm.py saved the name of its file
        saved["tokenizer"] = tokenizer_of(state).identity
    return saved
