"""Runs that are cut off: stopped, terminated, killed while saving, on a full disk.

results/resume.py does the same to whole processes, at random moments.
"""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from minivlm.loading.prepared import load_meta
from minivlm.optim import Optimizer, Together
from minivlm.running import checkpoint
from minivlm.running.options import ADDED_CLIP, ADDED_GPT, ADDED_VIT
from minivlm.running.run import Meter, Run
from minivlm.running.workers import batches
from test_train_scripts import ROOT, STAGES, config_of, rows_of


@pytest.fixture(autouse=True)
def default_sigterm():
    """A run that a test breaks off leaves its handler behind."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Stop(BaseException):
    """The process ends here, whatever the code would like to do about it."""


def interrupt(script, cfg, at: int, event) -> None:
    """Run the script's main; `event` happens in the middle of its update number `at`."""
    calls = {"n": 0}
    optimizer = getattr(script, "Together", getattr(script, "Optimizer", Together))
    whole_step = optimizer.step

    def step(self, *args):
        if calls["n"] == at:
            event()
        calls["n"] += 1
        return whole_step(self, *args)

    optimizer.step = step
    try:
        script.main(cfg)
    finally:
        optimizer.step = whole_step


def assert_equal_runs(a, b) -> None:
    """Both checkpoints bit by bit: weights, optimizer, generators, step; and the log, wall times
    aside.
    """
    for name in ("ckpt.pt", "best.pt"):
        assert checkpoint.equal(*(torch.load(f / name, weights_only=True) for f in (a, b))), name
    assert rows_of(a / "metrics.csv") == rows_of(b / "metrics.csv")


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_cut_off_resumes_to_the_same_bits(stage, runs, folder, tmp_path):
    """Catches forgotten state: moments, data order, generators, the best figure, the log's rows."""
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path / "half"))
    with pytest.raises(Stop):
        interrupt(script, cfg, 3, stop)  # the update is lost with the process, step 2 is saved
    torch.randn(7)  # whatever the new process did to the global generator must not matter
    _, cfg = config_of(stage, folder, runs, out=str(tmp_path / "half"), resume=True)
    script.main(cfg)
    assert_equal_runs(runs / stage, tmp_path / "half")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_resumes_with_other_micro_batches_and_another_name_of_its_data(
    stage, runs, folder, tmp_path
):
    """Catches a run that cannot go on with less memory, though its steps are the same. BLIP's are
    not: it compares the pairs within a micro-batch.
    """
    rows = []
    for name, changes in (("same", {}), ("parts", {"grad_accum": 3, "data": f"{folder}/."})):
        shutil.copytree(runs / stage, tmp_path / name)
        script, cfg = config_of(
            stage, folder, runs, out=str(tmp_path / name), resume=True, steps=5, **changes)
        if stage == "caption" and changes:
            with pytest.raises(ValueError, match=r"settings of grad_accum \(blip compares"):
                script.main(cfg)
            return
        script.main(cfg)
        rows.append(rows_of(tmp_path / name / "metrics.csv")[-1])
    assert rows[0].keys() == rows[1].keys() and rows[0]["step"] == "5"
    for key in ("loss", "grad"):
        assert float(rows[0][key]) == pytest.approx(float(rows[1][key]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("stage", ["lm", "clip", "sft"])
def test_a_run_of_an_older_version_resumes(stage, runs, folder, tmp_path, monkeypatch):
    """Catches runs of last week that are refused for settings which nobody had then; and pictures
    that were cropped and go on stretched.
    """
    shutil.copytree(runs / stage, tmp_path / "old")
    path = tmp_path / "old" / "ckpt.pt"
    state = torch.load(path, weights_only=True)
    old = state["configs"]
    old.pop("fit", None)
    old.pop("skip_long", None)
    old["grad_accum"] = 1
    model = old["model"]
    for part, added in ((model if stage == "lm" else model.get("gpt", {}), ADDED_GPT),
                        (model.get("vit", {}), ADDED_VIT), (model, ADDED_CLIP)):
        for name in added:
            part.pop(name, None)
    for name in ("loss", "checkpoint_blocks"):
        old.pop(name, None)
    if stage == "lm":
        old["tokenizer"] = ""  # the file's name, in place of the tokenizer's fingerprint
        old.pop("act")
    torch.save(state, path)
    script, cfg = config_of(
        stage, folder, runs, out=str(tmp_path / "old"), resume=True, steps=5)
    if stage != "lm":
        with pytest.raises(ValueError, match="was trained with other settings of fit"):
            script.main(cfg)
        monkeypatch.setattr(script, "load_meta", lambda name: load_meta(name) | {"fit": "crop"})
    script.main(cfg)
    assert rows_of(tmp_path / "old" / "metrics.csv")[-1]["step"] == "5"


@pytest.mark.parametrize("stage", STAGES)
def test_a_terminated_run_saves_where_it_is_and_loses_nothing(stage, runs, folder, tmp_path):
    """Catches a SIGTERM that costs the steps since the last evaluation, a log whose means forget
    the steps before it, and an exit code that says all is well.
    """
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        interrupt(script, cfg, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == 143
    assert checkpoint.load(tmp_path / "ckpt.pt", (stage,))["step"] == 3  # between two evaluations
    assert [r["step"] for r in rows_of(tmp_path / "metrics.csv")] == ["0", "1", "2", "3"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    torch.randn(7)
    _, cfg = config_of(stage, folder, runs, out=str(tmp_path), resume=True)
    script.main(cfg)
    assert_equal_runs(runs / stage, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_terminated_process_ends_with_143_and_another_goes_on(runs, folder, tmp_path):
    """Catches state that lives in the process alone, and workers of its group that break it off."""
    changes = {"steps": 60, "eval_every": 60, "out": str(tmp_path / "cut")}
    script, cfg = config_of("lm", folder, runs, **changes)
    flags = dataclasses.asdict(cfg) | {"workers": 2, "threads": 1}
    words = [sys.executable, "train_lm.py"]
    words += [f"--{k}={v}" for k, v in flags.items() if not isinstance(v, bool)]
    log = tmp_path / "cut" / "metrics.csv"
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as going:
        while not log.is_file():  # step 0 is logged before the first update
            assert going.poll() is None, going.stderr.read().decode()
            time.sleep(0.01)
        time.sleep(0.1)
        os.killpg(going.pid, signal.SIGTERM)
        said = going.stderr.read().decode()
    assert going.returncode == 143 and "--resume continues" in said and "Traceback" not in said
    assert checkpoint.load(tmp_path / "cut" / "ckpt.pt", ("lm",))["step"] < 60
    script.main(dataclasses.replace(cfg, resume=True))
    script.main(dataclasses.replace(cfg, out=str(tmp_path / "through")))
    assert_equal_runs(tmp_path / "through", tmp_path / "cut")


def test_terminated_in_its_last_step_a_run_is_finished(runs, folder, tmp_path):
    """Catches a complete run that reports failure, with nothing left to resume."""
    script, cfg = config_of("lm", folder, runs, out=str(tmp_path))
    interrupt(script, cfg, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert_equal_runs(runs / "lm", tmp_path)


def test_a_second_sigterm_ends_the_process_at_once():
    """Catches a run that cannot be ended while it hangs."""
    pid = os.fork()
    if not pid:
        log = Run.__new__(Run)
        log.terminated, log.handler = False, signal.SIG_DFL
        signal.signal(signal.SIGTERM, log._terminate)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM) if log.terminated else None
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_workers_outlive_a_sigterm_to_their_group():
    """Catches a terminated run that breaks off because its helpers were terminated first."""
    made = batches(lambda step: os.getpid(), 0, 40, workers=1)
    worker = next(made)
    os.kill(worker, signal.SIGTERM)
    time.sleep(0.05)
    assert [next(made) for _ in range(5)] == [worker] * 5


# --- saving ---


def some_state(seed: int, width: int = 200) -> dict:
    """A model with its optimizer, large enough that writing it takes a while."""
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    return {"model": model, "optimizer": Optimizer(model, 1e-3, 0), "meter": Meter(),
            "stage": "sft", "configs": {}, "best": 0.0}


def test_killed_at_any_moment_of_saving_a_whole_checkpoint_is_left(tmp_path, tokenizer):
    """Catches writing in place, or removing the old file first: SIGKILL at 40 random moments."""
    rng, best, last = random.Random(0), tmp_path / "best.pt", tmp_path / "ckpt.pt"
    state = some_state(0)
    began = time.perf_counter()
    checkpoint.save([best, last], step=0, tokenizer=tokenizer, **state)
    took, cut_off, steps = time.perf_counter() - began, 0, [0, 0]
    for _ in range(40):
        pid = os.fork()
        if not pid:
            for step in range(steps[1] + 1, 10_000):  # as a resumed run would
                checkpoint.save([best, last], step=step, tokenizer=tokenizer, **state)
            os._exit(1)
        time.sleep(2 * took * rng.random() + took)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        cut_off += bool(list(tmp_path.glob("*.tmp")))
        steps = [checkpoint.load(path, ("sft",))["step"] for path in (best, last)]
        assert steps[0] - steps[1] in (0, 1)  # the best one is written first
    assert cut_off > 5  # kills did fall into the writing


@pytest.mark.parametrize("stage", ["lm", "sft", "dpo"])
def test_killed_between_both_checkpoints_nothing_is_lost(
    stage, runs, folder, tmp_path, monkeypatch
):
    """Catches a best.pt that stays behind for good: its run thinks that it has been written."""
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path))
    write, seen = checkpoint.write, []

    def dies(state, path):
        seen.append(state["step"])
        if seen.count(4) == 2:
            raise Stop
        write(state, path)

    monkeypatch.setattr(checkpoint, "write", dies)
    with pytest.raises(Stop):
        script.main(cfg)
    monkeypatch.undo()
    _, cfg = config_of(stage, folder, runs, out=str(tmp_path), resume=True)
    script.main(cfg)
    assert_equal_runs(runs / stage, tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk_is_said_in_one_line_and_costs_no_checkpoint(old, tmp_path, tokenizer):
    """Catches torch's traceback about positions in a file, an old checkpoint lost, and a half
    written file that goes on filling the disk.
    """
    path = tmp_path / "ckpt.pt"
    if old:
        checkpoint.save([path], step=1, tokenizer=tokenizer, **some_state(0))
    (tmp_path / "ckpt.tmp").symlink_to("/dev/full")  # every write there fails with ENOSPC
    kept = "the old one is intact" if old else "there was none before"
    said = rf"ckpt\.pt could not be written \(.*No space left.*\); {kept}"
    with pytest.raises(OSError, match=said):
        checkpoint.save([path], step=2, tokenizer=tokenizer, **some_state(1))
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"] * old
    if old:
        assert checkpoint.load(path, ("sft",))["step"] == 1


def test_a_gradient_that_is_no_number_is_not_applied(runs, folder, tmp_path, monkeypatch):
    """Catches weights that are lost to one bad batch: loss finite, gradient not."""
    script, cfg = config_of("sft", folder, runs, out=str(tmp_path))
    seen = {}

    def poisoned(logits, targets, original=script.next_token_loss, **options):
        loss = original(logits, targets, **options)
        if torch.is_grad_enabled():
            seen["calls"] = seen.get("calls", 0) + 1
            if seen["calls"] == 2 * cfg.grad_accum + 1:
                return loss + (logits.sum() * 0).sqrt() * 0  # 0 * inf in the backward pass
        return loss

    monkeypatch.setattr(script, "next_token_loss", poisoned)
    with pytest.raises(ValueError, match=r"gradient is nan at step 2; batch \['.*losses before \["):
        script.main(cfg)
    assert (tmp_path / "stopped.json").is_file()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    _, cfg = config_of("sft", folder, runs, out=str(tmp_path), resume=True)
    script.main(cfg)
    assert_equal_runs(runs / "sft", tmp_path)
