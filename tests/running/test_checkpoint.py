"""minivlm/running/checkpoint.py: what is saved comes back, and what is not ours is refused."""

import math
import os
import pickle
import random

import pytest
import torch
from torch import nn

from minivlm.optim import Optimizer
from minivlm.running import checkpoint
from minivlm.running.run import Meter
from minivlm.tokenizer import Tokenizer

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
CONFIGS = {"model": {"n_embd": 4, "n_layer": 1}, "seed": 0}


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4), nn.Linear(4, 2))


def save(*paths, model=None, **changes) -> None:
    options = {
        "stage": "sft", "configs": CONFIGS, "step": 7, "best": 0.5, "tokenizer": TOKENIZER,
    } | changes
    checkpoint.save(list(paths), model=model or make_model(), **options)


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> list[float]:
    """A few noisy steps that use the global generator twice: dropout and the batch itself."""
    losses = []
    for step in steps:
        loss = model(torch.randn(8, 4)).square().mean() + 0.1 * step
        loss.backward()
        optimizer.step(0.5, 1.0)
        losses.append(loss.item())
    return losses


def test_what_is_saved_is_loaded(tmp_path):
    """Catches a lost entry, a tensor of another type, and a tokenizer that is not the same."""
    model = make_model()
    save(tmp_path / "ckpt.pt", model=model, best=torch.tensor(0.25))
    state = checkpoint.load(tmp_path / "ckpt.pt", ("sft",))
    assert (state["stage"], state["step"], state["best"], state["configs"]) == (
        "sft", 7, 0.25, CONFIGS
    )
    assert type(state["best"]) is float and state["optimizer"] is None
    fresh = make_model(seed=1)
    fresh.load_state_dict(state["model"])
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values())
    )
    assert Tokenizer.from_text(state["tokenizer"]).identity == TOKENIZER.identity


def test_a_checkpoint_holds_plain_types_only(tmp_path):
    """Catches a pickled dataclass or namespace: torch's safe loader must read the file itself."""
    model = make_model()
    optimizer = Optimizer(model, 1e-3, 0.02)
    train(model, optimizer, range(2))
    save(tmp_path / "ckpt.pt", model=model, optimizer=optimizer)
    state = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert set(state) == {
        "format", "stage", "configs", "step", "best", "model", "optimizer", "meter", "tokenizer",
        "rng"}


@pytest.mark.parametrize("b", [
    {"x": [torch.ones(2), 1]}, {"x": [torch.zeros(2), 2]}, {"x": [torch.zeros(3), 1]},
    {"x": [torch.zeros(2), True]}, {"x": [torch.zeros(2), 1, 0]}, {"x": (torch.zeros(2), 1)},
    {"x": [torch.zeros(2).double(), 1]}, {"y": [torch.zeros(2), 1]}, [],
])
def test_checkpoints_that_differ_anywhere_are_not_equal(b):
    """Catches a comparison that looks at keys or shapes alone."""
    a = {"x": [torch.zeros(2), 1]}
    assert checkpoint.equal(a, {"x": [torch.zeros(2), 1]}) and not checkpoint.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, None])
def test_checkpoints_are_compared_bit_by_bit(dtype):
    """Catches a resumed run called equal whose zeros have other signs, and NaN called different."""
    def make(x: float):
        return [x if dtype is None else torch.tensor(x, dtype=dtype)]

    assert checkpoint.equal(make(math.nan), make(math.nan))
    assert checkpoint.equal(make(-0.0), make(-0.0))
    assert not checkpoint.equal(make(0.0), make(-0.0))


def test_weights_of_every_type_have_a_fingerprint():
    """Catches a TypeError for bfloat16, which NumPy lacks, equal values that differ by their type,
    and one bit that makes no difference.
    """
    prints = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for x in (0.0, -0.0, 1.0):
            weights = {"w": torch.full((2, 3), x, dtype=dtype).T, "n": torch.tensor(3)}
            prints.add(checkpoint.fingerprint({"model": weights}))
    assert len(prints) == 3


def test_a_folder_gives_its_best_and_else_its_last(tmp_path):
    """Catches the last weights used where better ones were kept."""
    save(tmp_path / "ckpt.pt", step=9)
    assert checkpoint.load(tmp_path, ("sft",))["step"] == 9
    save(tmp_path / "best.pt", step=4)
    assert checkpoint.load(tmp_path, ("sft",))["step"] == 4
    assert checkpoint.load(tmp_path / "ckpt.pt", ("sft",))["step"] == 9
    save(tmp_path / "ckpt.pt", tmp_path / "best.pt", step=11)
    assert [
        checkpoint.load(tmp_path / f, ("sft",))["step"] for f in ("ckpt.pt", "best.pt")
    ] == [11, 11]


def test_nothing_is_left_beside_the_checkpoint(tmp_path):
    """Catches temporary files that pile up, and a run folder unlike what the docstring says."""
    save(tmp_path / "ckpt.pt", tmp_path / "best.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "ckpt.pt"]


def test_a_crash_while_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    """Catches writing in place: after a crash in the middle the old file must still load."""
    save(tmp_path / "ckpt.pt", step=1)
    (tmp_path / "ckpt.tmp").write_bytes(b"half of what a killed process wanted to write")

    def dies(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "ckpt.pt", step=2)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path, ("sft",))["step"] == 1
    (tmp_path / "ckpt.tmp").write_bytes(b"half again")
    save(tmp_path / "ckpt.pt", step=3)
    assert checkpoint.load(tmp_path, ("sft",))["step"] == 3


@pytest.mark.parametrize("path", ["", "none", "none.pt"])
def test_a_missing_checkpoint_names_the_script_that_makes_it(path, tmp_path):
    """Catches a bare errno when stages are run out of order."""
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at .*; run train_align\.py or train_sft\.py first"
    ):
        checkpoint.load(tmp_path / path, ("align", "sft"))


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    """Catches a CLIP loaded as a language model, which strict keys would report less kindly."""
    save(tmp_path / "ckpt.pt", stage="clip")
    with pytest.raises(ValueError, match="is a checkpoint of stage 'clip', expected align or sft"):
        checkpoint.load(tmp_path, ("align", "sft"))


def test_a_truncated_checkpoint_is_reported_as_damaged(tmp_path):
    """Catches a traceback out of torch's zip reader for a broken copy."""
    path = tmp_path / "ckpt.pt"
    save(path)
    whole = path.read_bytes()
    for n in (len(whole) - 1, len(whole) // 2, 50):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"ckpt\.pt "):
            checkpoint.load(path, ("sft",))
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r"ckpt\.pt is damaged \(.*\); train this stage again"):
        checkpoint.load(path, ("sft",))


@pytest.mark.parametrize("content", [b"hello", b"\n", b"PK", b"", b"\x80"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(content, tmp_path):
    """Catches exceptions out of the unpickler, an empty file's among them."""
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt\.pt (is damaged|holds more than tensors)"):
        checkpoint.load(tmp_path, ("sft",))


def test_random_damage_is_reported_with_the_files_name(tmp_path):
    """Catches decoding errors that do not say which file, and exceptions of other kinds."""
    path = tmp_path / "ckpt.pt"
    save(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(4):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
        try:
            checkpoint.load(path, ("sft",))  # damage inside the weights cannot be seen
        except ValueError as error:
            assert "ckpt.pt" in str(error)


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    """Catches weights_only=False: a downloaded checkpoint must not run a program."""
    message = r"ckpt\.pt holds more than tensors and plain types"
    torch.save({"format": 1, "stage": "sft", "model": Bomb(tmp_path / "hit")}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path, ("sft",))
    (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "hit"), protocol=2))
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path, ("sft",))
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("state", [
    {"format": 0, "stage": "sft"}, {"stage": "sft"}, [1, 2], torch.zeros(2),
])
def test_a_foreign_or_older_file_is_refused(state, tmp_path):
    """Catches a state_dict of another project taken for a checkpoint."""
    torch.save(state, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"ckpt\.pt is no minivlm checkpoint of format 1"):
        checkpoint.load(tmp_path, ("sft",))


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    """Catches optimizer moments or random numbers not restored: 6 steps equal 3 + 3 bit for bit."""
    torch.manual_seed(3)
    model = make_model()
    optimizer = Optimizer(model, 1e-2, 0.02)
    train(model, optimizer, range(3))
    save(tmp_path / "ckpt.pt", model=model, optimizer=optimizer, step=3, best=1.5)
    wanted = train(model, optimizer, range(3, 6))

    other = make_model(seed=5)
    again = Optimizer(other, 1e-2, 0.02)
    torch.randn(100)
    path = tmp_path / "ckpt.pt"
    assert checkpoint.resume(path, "sft", CONFIGS, other, again, Meter()) == (3, 1.5)
    assert train(other, again, range(3, 6)) == wanted
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_saving_does_not_move_the_random_numbers(tmp_path):
    """Catches a run that depends on how often it saves."""
    torch.manual_seed(1)
    save(tmp_path / "ckpt.pt", model=(model := make_model(1)))
    first = torch.randn(3)
    torch.manual_seed(1)
    make_model(1)
    assert torch.equal(first, torch.randn(3)) and model.training


@pytest.mark.parametrize("configs, named", [
    ({"model": {"n_embd": 4, "n_layer": 2}, "seed": 0}, "model"),
    ({"model": {"n_embd": 4, "n_layer": 1}, "seed": 1}, "seed"),
    ({"model": {"n_embd": 8, "n_layer": 1}, "seed": 1}, "model, seed"),
    ({"model": {"n_embd": 4, "n_layer": 1}, "seed": 1, "batch_size": 3}, "batch_size, seed"),
])
def test_resuming_with_other_settings_names_what_differs(configs, named, tmp_path):
    """Catches a resumed run that is quietly another run."""
    save(tmp_path / "ckpt.pt")
    model = make_model()
    with pytest.raises(
        ValueError, match=f"trained with other settings of {named}; resume with the same"
    ):
        checkpoint.resume(
            tmp_path / "ckpt.pt", "sft", configs, model, Optimizer(model, 1e-3, 0), Meter()
        )


def test_a_run_from_before_an_option_existed_is_said_to_be_older(tmp_path):
    """Catches a remedy that cannot be followed: the file has no value to resume with."""
    save(tmp_path / "ckpt.pt")
    model = make_model()
    with pytest.raises(ValueError, match="is older than the settings lora and has none; train"):
        checkpoint.resume(tmp_path / "ckpt.pt", "sft", CONFIGS | {"lora": 0}, model,
                          Optimizer(model, 1e-3, 0), Meter())


def test_a_run_with_an_option_that_is_a_constant_now_can_be_resumed(tmp_path):
    """Catches old runs refused for an option that no longer exists, though its value is the
    constant's; with another value they are refused."""
    model = make_model()
    optimizer = Optimizer(model, 1e-3, 0)
    old = {"lora_layers": "gpt.*,projector.*", "center": 0.01}
    save(tmp_path / "ckpt.pt", configs=CONFIGS | old, model=model, optimizer=optimizer, step=3)
    step, _ = checkpoint.resume(
        tmp_path / "ckpt.pt", "sft", CONFIGS, model, optimizer, Meter())
    assert step == 3
    save(tmp_path / "ckpt.pt", configs=CONFIGS | {"center": 0.5}, model=model)
    with pytest.raises(ValueError, match="other settings of center"):
        checkpoint.resume(tmp_path / "ckpt.pt", "sft", CONFIGS, model, optimizer, Meter())


def resumed(path, saved: dict, configs: dict) -> int:
    """Save a checkpoint with some settings, resume it with others, return the next step."""
    model = make_model()
    optimizer = Optimizer(model, 1e-3, 0)
    save(path, configs=saved, model=model, optimizer=optimizer)
    return checkpoint.resume(path, "sft", configs, model, optimizer, Meter())[0]


@pytest.mark.parametrize("saved, now", [
    ({}, {"fit": "crop"}), ({}, {"skip_long": False}), ({"fit": "pad"}, {"fit": "pad"}),
    ({"grad_accum": 1}, {}), ({"grad_accum": 2, "workers": 1}, {"skip_long": False}),
    ({"data": "a/b/"}, {"data": "a/b"}), ({"data": "./a//b/../b"}, {"data": "a/b/"}),
    ({"data": os.path.abspath("a/b")}, {"data": "a/b"}),
    ({"tokenizer": ""}, {"tokenizer": TOKENIZER.identity}),
])
def test_settings_that_mean_the_same_can_be_resumed(saved, now, tmp_path):
    """Catches a run refused for another name of its folder, for how much memory it takes, or for
    an entry that its version did not have.
    """
    assert resumed(tmp_path / "ckpt.pt", CONFIGS | saved, CONFIGS | now) == 7


@pytest.mark.parametrize("saved, now, named", [
    ({}, {"fit": "pad"}, "fit"), ({"fit": "pad"}, {"fit": "crop"}, "fit"),
    ({}, {"skip_long": True}, "skip_long"), ({"data": "a"}, {"data": "b"}, "data"),
    ({"data": "a/b"}, {"data": "b"}, "data"), ({"data": 3}, {"data": "a"}, "data"),
    ({"tokenizer": "0" * 16}, {"tokenizer": "0" * 16}, "tokenizer"),
    ({"grad_accum": 1}, {"grad_accum": 2},
     r"grad_accum \(blip compares the pairs within a micro-batch\)"),
])
def test_settings_that_mean_something_else_cannot_be_resumed(saved, now, named, tmp_path):
    """Catches a second half that learns from other pixels, records or tokens than the first."""
    with pytest.raises(ValueError, match=f"other settings of {named}; resume with the same"):
        resumed(tmp_path / "ckpt.pt", CONFIGS | saved, CONFIGS | now)


def test_a_damaged_checkpoint_leads_to_the_best_one(tmp_path):
    """Catches a run given up whose best weights are whole."""
    save(tmp_path / "best.pt")
    (tmp_path / "ckpt.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:500])
    match = r"ckpt\.pt is damaged .*, or start another run from best\.pt"
    with pytest.raises(ValueError, match=match):
        checkpoint.load(tmp_path / "ckpt.pt", ("sft",))


def test_a_setting_that_the_new_run_lacks_is_named_too(tmp_path):
    """Catches a message that says "other settings of ;"."""
    save(tmp_path / "ckpt.pt")
    model = make_model()
    with pytest.raises(ValueError, match="other settings of seed"):
        checkpoint.resume(tmp_path / "ckpt.pt", "sft", {"model": CONFIGS["model"]}, model,
                          Optimizer(model, 1e-3, 0), Meter())


def test_resuming_another_stage_is_refused(tmp_path):
    """Catches `--out runs/clip --resume` given to another script."""
    save(tmp_path / "ckpt.pt", stage="clip")
    model = make_model()
    with pytest.raises(ValueError, match="is a checkpoint of stage 'clip', expected sft"):
        checkpoint.resume(
            tmp_path / "ckpt.pt", "sft", CONFIGS, model, Optimizer(model, 1e-3, 0), Meter()
        )


@pytest.mark.parametrize("key, value", [
    ("model", {}), ("model", {"0.weight": torch.zeros(3)}), ("optimizer", None), ("optimizer", []),
    ("rng", {}), ("rng", {"torch": torch.zeros(3)}), ("meter", {"n": 1}), ("meter", "x"),
])
def test_what_does_not_fit_its_own_settings_is_one_line(key, value, tmp_path):
    """Catches torch's list of keys, or a KeyError, for a file that was tampered with."""
    path, model = tmp_path / "ckpt.pt", make_model()
    optimizer = Optimizer(model, 1e-3, 0)
    save(path, model=model, optimizer=optimizer, meter=Meter())
    torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    with pytest.raises(ValueError, match=r"ckpt\.pt cannot be resumed from: ."):
        checkpoint.resume(path, "sft", CONFIGS, model, optimizer, Meter())
