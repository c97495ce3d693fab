"""Every script end to end on tiny data: runs, learns, resumes bit for bit, moves what it should."""

import csv
import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import chat
import evaluate
import train_align
import train_caption
import train_clip
import train_dpo
import train_grpo
import train_lm
import train_ppo
import train_reward
import train_sft
from conftest import SMALL
from minivlm.loading.batches import collate
from minivlm.loading.images import Pictures
from minivlm.loading.models import vlm_from
from minivlm.loading.prepared import load_records
from minivlm.preferences import pairs
from minivlm.running import checkpoint, options
from minivlm.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]


def config_of(stage: str, folder: Path, runs: Path, **changes):
    """The stage's script and the Config its run was made with, some fields changed."""
    script = {
        "lm": train_lm, "clip": train_clip, "caption": train_caption, "align": train_align,
        "sft": train_sft, "reward": train_reward, "ppo": train_ppo,
        "grpo": train_grpo, "dpo": train_dpo,
    }[stage]
    made = json.loads((runs / stage / "config.json").read_text())
    return script, script.Config(**(made | changes))


def rows_of(path: Path) -> list[dict[str, str]]:
    """A log's rows without the columns that hold wall time and memory."""
    with path.open() as f:
        return [
            {k: v for k, v in row.items() if not k.endswith(("ms", "mfu", "gb", "min"))}
            for row in csv.DictReader(f)
        ]


STAGES = ("lm", "clip", "caption", "align", "sft", "reward", "ppo", "grpo", "dpo")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_config_log_checkpoints_versions_and_its_script(stage, runs):
    """Catches a run folder that cannot say how it came about."""
    names = {p.name for p in (runs / stage).iterdir()}
    assert {
        "config.json", "metrics.csv", "ckpt.pt", "best.pt", "env.txt", f"train_{stage}.py"
    } <= names
    assert [int(r["step"]) for r in rows_of(runs / stage / "metrics.csv")] == [0, 1, 2, 3, 4]
    assert not list((runs / stage).glob("*.tmp"))


def test_the_first_logged_loss_is_what_theory_says(runs, folder):
    """Catches a wrong head, a wrong shift or a first update before the first measurement:
    ln V and ln B at step 0.
    """
    vocab_size = checkpoint.load(runs / "lm", ("lm",))["configs"]["model"]["vocab_size"]
    lm, clip = (float(rows_of(runs / s / "metrics.csv")[0]["val_loss"]) for s in ("lm", "clip"))
    assert lm == pytest.approx(math.log(vocab_size), abs=0.1)
    # random towers are not blind: at a multiplier of 14 their chance similarities cost a little
    # more than ln B
    assert math.log(40) - 0.1 < clip < math.log(40) + 0.9


@pytest.mark.parametrize("stage", ("sft", "reward", "ppo", "grpo", "dpo"))
def test_evaluating_more_often_does_not_change_the_weights(stage, runs, folder, tmp_path):
    """Catches validation that draws from training's generators or leaves the model in eval mode."""
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path), eval_every=1)
    script.main(cfg)
    a, b = (
        torch.load(f / "ckpt.pt", weights_only=True)["model"] for f in (runs / stage, tmp_path)
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_accumulation_gives_the_same_step(stage, runs, folder, tmp_path):
    """Catches micro-batches averaged as if each supervised equally many tokens, and contrasts
    within parts only. BLIP's contrast is within a part, so captioning is tested without it.
    """
    same = {"steps": 1, "eval_every": 1} | {
        "caption": {"objective": "lm"}, "dpo": {"sft_coef": 1.0}}.get(stage, {})
    script, cfg = config_of(stage, folder, runs, out=str(tmp_path), grad_accum=3, **same)
    script.main(cfg)
    script, once = config_of(stage, folder, runs, out=str(tmp_path / "once"), grad_accum=1, **same)
    script.main(once)
    a, b = (rows_of(f / "metrics.csv")[1] for f in (tmp_path, tmp_path / "once"))
    after = "val_score" if stage in ("ppo", "grpo") else "val_loss"
    assert float(a[after]) == pytest.approx(float(b[after]), abs=1e-4)
    value = ("value_loss",) if stage == "ppo" else ()
    # a step's size hides the gradient's: Muon and AdamW normalize
    for key in ("loss", "grad", *value):
        assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4, abs=1e-6)


def test_the_projector_reads_the_layer_that_was_asked_for(runs, folder, tmp_path):
    """Catches --feature_layer without effect, or forgotten by the checkpoint."""
    script, cfg = config_of("align", folder, runs, out=str(tmp_path / "o"), feature_layer=-1)
    script.main(cfg)
    for run, layer in ((tmp_path / "o", -1), (runs / "align", -2)):
        state = checkpoint.load(run, ("align",))
        assert vlm_from(state).vit.config.feature_layer == layer


def test_only_the_projector_changes_in_stage_3a(runs):
    """Catches a frozen tower that moves, and a projector that does not."""
    after = torch.load(runs / "align" / "ckpt.pt", weights_only=True)["model"]
    clip = torch.load(runs / "clip" / "best.pt", weights_only=True)["model"]
    lm = torch.load(runs / "lm" / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(v, clip[k]) for k, v in after.items() if k.startswith("vit."))
    assert all(
        torch.equal(v, lm[k.removeprefix("gpt.")]) for k, v in after.items() if k.startswith("gpt.")
    )
    torch.manual_seed(SMALL["seed"])
    config = checkpoint.load(runs / "align", ("align",))["configs"]["model"]
    fresh = train_align.VLM(train_align.VLMConfig.from_dict(config))
    weights = [k for k in after if k.startswith("projector.") and k.endswith("weight")]
    assert weights and not any(torch.equal(after[k], fresh.state_dict()[k]) for k in weights)


def test_sft_keeps_the_vit_unless_told_otherwise(runs, folder, tmp_path):
    """Catches freeze_vit being ignored, either way."""
    before = torch.load(runs / "align" / "best.pt", weights_only=True)["model"]
    after = torch.load(runs / "sft" / "ckpt.pt", weights_only=True)["model"]
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("vit."))
    assert not torch.equal(before["gpt.wte.weight"], after["gpt.wte.weight"])
    script, cfg = config_of("sft", folder, runs, out=str(tmp_path), freeze_vit=False, steps=1)
    script.main(cfg)
    after = torch.load(tmp_path / "ckpt.pt", weights_only=True)["model"]
    assert not torch.equal(before["vit.patch.weight"], after["vit.patch.weight"])


def test_sft_keeps_the_gpt_if_told_to(runs, folder, tmp_path):
    """Catches freeze_gpt being ignored, a projector frozen with it, and options that contradict
    it: documents and adapters."""
    before = torch.load(runs / "align" / "best.pt", weights_only=True)["model"]
    options = {"out": str(tmp_path), "freeze_gpt": True, "steps": 1}
    script, cfg = config_of("sft", folder, runs, n_texts=0, **options)
    script.main(cfg)
    after = torch.load(tmp_path / "ckpt.pt", weights_only=True)["model"]
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projector"}
    for more in ({"n_texts": 1}, {"n_texts": 0, "lora": 2}):
        with pytest.raises(ValueError, match="freeze_gpt"):
            config_of("sft", folder, runs, **options, **more)


@pytest.mark.parametrize("stage", ("sft", "caption"))
def test_documents_of_stage_0_are_among_what_is_learned(stage, runs, folder, tmp_path):
    """Catches n_texts or text_weight being ignored: other documents, or others' weight, lead
    elsewhere."""
    texts = (folder / "text.jsonl").read_text()
    more = {"objective": "lm"} if stage == "caption" else {}  # blip reads no documents
    ends = []
    for n_texts, changed, weight in (
        (0, False, 1.0), (3, False, 1.0), (3, True, 1.0), (3, True, 0.1), (0, True, 1.0),
    ):
        name = f"{n_texts} {changed} {weight}"
        data = tmp_path / f"data {name}"
        shutil.copytree(folder, data)
        if changed:
            (data / "text.jsonl").write_text(texts.replace("the", "then"))
        script, cfg = config_of(
            stage, data, runs, data=str(data), out=str(tmp_path / name), n_texts=n_texts,
            text_weight=weight, steps=1, grad_accum=2, **more,
        )
        script.main(cfg)
        state = torch.load(tmp_path / name / "ckpt.pt", weights_only=True)
        ends.append(next(w for k, w in state["model"].items() if k.endswith("gpt.wte.weight")))
    assert all(not torch.equal(one, other) for one, other in zip(ends, ends[1:]))
    assert torch.equal(ends[0], ends[-1])


@pytest.mark.parametrize("objective", ("lm", "prefix_lm", "blip"))
def test_every_captioning_objective_trains_and_leads_to_a_chatbot(
    objective, runs, folder, tmp_path, capsys
):
    """Catches an objective that breaks, a ViT that is trained though frozen, or the other way, and
    a prefix mask that stays in SFT."""
    script, cfg = config_of(
        "caption", folder, runs, out=str(tmp_path / "caption"), objective=objective, grad_accum=2,
        n_texts=3, vit_rate=0.0 if objective == "lm" else 1.0,
    )
    row = script.main(cfg)
    assert 0 < row["val_loss"] < 8
    assert ("val_match" in row) == (objective == "blip")  # nothing else trains that head
    state = torch.load(tmp_path / "caption" / "ckpt.pt", weights_only=True)
    before = torch.load(runs / "clip" / "best.pt", weights_only=True)["model"]
    assert state["configs"]["model"]["prefix_lm"] == (objective == "prefix_lm")
    is_old = torch.equal(state["model"]["vlm.vit.patch.weight"], before["vit.patch.weight"])
    assert is_old == (objective == "lm")
    script, cfg = config_of(
        "sft", folder, runs, init=str(tmp_path / "caption"), out=str(tmp_path / "sft"), steps=1
    )
    script.main(cfg)
    after = torch.load(tmp_path / "sft" / "ckpt.pt", weights_only=True)
    assert after["configs"]["model"]["prefix_lm"] is False
    picture = str(folder / "samples" / "0.png")
    for run in ("caption", "sft"):
        chat.main(chat.Config(str(tmp_path / run), picture, "What is this?", max_new_tokens=4))
    assert capsys.readouterr().out.endswith("\n")


def test_an_unknown_objective_is_refused(runs, folder, tmp_path):
    """Catches a misspelled objective that trains another one."""
    with pytest.raises(ValueError, match="objective 'itm' is not one of lm, prefix_lm, blip"):
        script, cfg = config_of("caption", folder, runs, out=str(tmp_path), objective="itm")
        script.main(cfg)


def test_the_language_model_learns_on_its_tiny_corpus(folder, tmp_path):
    """Catches a loop that learns nothing but how frequent a token is: 60 steps must take the loss
    from ln V = 7.3 below the entropy of single tokens, 5.1.
    """
    cfg = train_lm.Config(
        data=str(folder), out=str(tmp_path), steps=60, n_layer=2, n_embd=64, batch_size=8,
        warmup=5, eval_every=60,
    )
    row = train_lm.main(cfg)
    tokenizer = Tokenizer.load(folder / "tokenizer.tiktoken")
    counts = Counter()
    for record in load_records(folder, "text"):
        counts.update(tokenizer.encode(record["text"]))
    shares = [n / counts.total() for n in counts.values()]
    assert row["val_loss"] < -sum(p * math.log(p) for p in shares)


@pytest.mark.parametrize("stage", ("clip", "caption", "sft", "ppo", "grpo", "dpo"))
def test_evaluation_writes_figures_beside_a_blind_baseline(stage, runs, folder, tmp_path):
    """Catches an evaluation that cannot run on a weak model, or whose blind side sees."""
    out = tmp_path / "figures.json"
    figures = evaluate.main(
        evaluate.Config(
            str(runs / stage), str(folder), str(out), n_images=40, n_questions=4, n_describe=8,
            max_new_tokens=8, batch_size=16, rank=True,
            clip_score=str(runs / "clip") if stage == "caption" else "",
        )
    )
    written = json.loads(out.read_text())
    assert written["figures"] == figures and written["blind"].keys() == figures.keys()
    assert {"command", "environment", "minutes", "config"} <= written.keys()
    assert all(0 <= v <= (10 if k == "captions/cider" else 2.5 if "clip_score" in k else 1)
               for k, v in figures.items())
    for group, stages in {"captions/clip_score": ("caption",), "zero_shot/": ("clip",),
                          "ranked/": ("caption", "align", "sft", "ppo", "grpo", "dpo")}.items():
        assert any(k.startswith(group) for k in figures) == (stage in stages)


# --- mistakes on the command line: one line, exit code 2, nothing lost ---


def call(script: str, *args: str) -> subprocess.CompletedProcess:
    """Run a script as a user would."""
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True, cwd=ROOT)


def fails_clearly(done: subprocess.CompletedProcess, *words: str) -> None:
    """Assert exit code 2 and one line that says what was wrong."""
    assert done.returncode == 2, done.stderr
    [said] = done.stderr.strip().splitlines()
    assert "error:" in said and all(w in said for w in words), said


SCRIPTS = (
    "train_lm.py", "train_clip.py", "train_caption.py", "train_align.py", "train_sft.py",
    "evaluate.py", "chat.py", "data/book/prepare.py", "data/nlvr/prepare.py",
    "data/coco/prepare.py", "data/cifar10/prepare.py", "data/webdata/prepare.py",
    "data/capfilt.py",
)


@pytest.mark.parametrize("script", ("train_sft.py", "data/book/prepare.py"))
def test_an_unknown_flag_is_an_error(script):
    """Catches a mistyped option that is silently ignored."""
    fails_clearly(call(script, "--lrr", "1"), "--lrr")


def test_a_mistake_in_the_inputs_is_one_line(runs, folder, tmp_path, capsys, monkeypatch):
    """Catches tracebacks for what users do wrong: each case names the file or value at fault."""
    broken = tmp_path / "broken.png"
    broken.write_bytes((folder / "samples" / "0.png").read_bytes()[:60])
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "ckpt.pt").write_bytes((runs / "sft" / "ckpt.pt").read_bytes()[:2000])
    ask, out = ["--run", f"{runs}/sft", "--ask", "What is this?"], ["--out", f"{tmp_path}/o"]
    fails_clearly(call("chat.py", *ask, "--image", str(broken)), "broken.png")
    for module, args, words in (
        (chat, [*ask, "--image", f"{tmp_path}/none.png"], ["none.png"]),
        (chat, [*ask, "--image", f"{tmp_path}/float.tiff"], ["float.tiff"]),
        (chat, ["--run", f"{runs}/sft", "--ask", "word " * 500], ["context"]),
        (chat, ["--run", f"{runs}/clip", "--ask", "Hi"], ["'clip'", "sft"]),
        (chat, ["--run", str(cut), "--ask", "Hi"], ["ckpt.pt"]),
        (train_sft, ["--init", f"{tmp_path}/nothing", *out], ["train_align.py"]),
        (train_lm, ["--data", f"{tmp_path}/nothing", *out], ["prepare.py"]),
    ):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            options.cli(module.main, module.Config)
        done = SimpleNamespace(returncode=ended.value.code, stderr=capsys.readouterr().err)
        fails_clearly(done, *words)


@pytest.mark.parametrize("stage, flags, words", [
    ("lm", {"data": "nowhere"}, "prepare.py"), ("lm", {"block_size": 100_000}, "too few"),
    ("clip", {"patch_size": 7}, "not a multiple of patch_size"),
    ("clip", {"batch_size": 10_000}, "larger than"),
    ("clip", {"block_size": 5}, "the context holds 5"), ("clip", {"n_layer": 1}, "n_layer 1"),
    ("clip", {"n_embd": 40}, "n_embd 40"), ("align", {"lm": "nowhere"}, "train_lm.py"),
    ("align", {"projector": "conv"}, "projector 'conv'"), ("sft", {"steps": -1}, "steps is -1"),
    ("sft", {"batch_size": 0}, "batch_size is 0"), ("sft", {"grad_accum": 0}, "grad_accum is 0"),
    ("sft", {"eval_every": 0}, "eval_every is 0"), ("sft", {"dtype": "fp16"}, "dtype 'fp16'"),
    ("sft", {"device": "cuda:77"}, "not usable"), ("sft", {"init": "clip"}, "stage 'clip'"),
    ("sft", {"init": "OUT"}, "would overwrite"), ("sft", {"muon_lr": -1.0}, "muon_lr is -1"),
    ("reward", {"split": "nothing"}, "data/preferences.py first"),
    ("reward", {"init": "clip"}, "stage 'clip'"), ("reward", {"margin": -1.0}, "margin is -1"),
    ("ppo", {"init": "lm"}, "stage 'lm'"), ("ppo", {"kl": "k4"}, "kl 'k4'"),
    ("ppo", {"temperature": 0.0}, "temperature is 0.0, expected > 0"),
    ("ppo", {"max_new_tokens": 250}, "an answer of 250 included; the context holds 256"),
    ("ppo", {"split": "nothing"}, "no data at"), ("ppo", {"records": "val"}, "no picture train"),
    ("ppo", {"reward": "nowhere"}, "train_reward.py"), ("ppo", {"batch_size": 9999}, "larger than"),
    ("ppo", {"minibatches": 7, "grad_accum": 1}, "minibatches times grad_accum, 7 is more than"),
    ("grpo", {"init": "lm"}, "stage 'lm'"), ("grpo", {"advantage": "ppo"}, "advantage 'ppo'"),
    ("grpo", {"n_copies": 1}, "n_copies is 1, expected >= 2"), ("grpo", {"kl": "k3"}, "kl 'k3'"),
    ("grpo", {"n_copies": 4}, "batch_size 6 is not a multiple of n_copies 4"),
    ("grpo", {"reward": "nowhere"}, "train_reward.py"), ("grpo", {"lr": 0.0}, "are both 0"),
    ("grpo", {"clip_high": 0.0}, "clip_high is 0.0, expected > 0"),
    ("dpo", {"init": "clip"}, "stage 'clip'"), ("dpo", {"kind": "simpo"}, "kind 'simpo'"),
    ("dpo", {"beta": 0.0}, "beta is 0.0"), ("dpo", {"split": "nothing"}, "no pairs at"),
    ("dpo", {"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing is 0.1 for kind ipo"),
    ("dpo", {"batch_size": 9999}, "larger than"),
    # with these nothing would be learned
    ("clip", {"batch_size": 1}, "batch_size is 1, expected >= 2"),
    ("lm", {"lr": 0.0, "muon_lr": 0.0}, "lr and muon_lr are both 0"),
    ("dpo", {"lr": 0.0}, "lr and muon_lr are both 0"), ("ppo", {"lr": 0.0}, "are both 0"),
    ("ppo", {"clip_eps": 0.0}, "clip_eps is 0.0, expected > 0"),
    ("ppo", {"batch_size": 1, "grad_accum": 1}, "batch_size is 1, expected >= 2"),
    ("ppo", {"kl_coef": 0.0, "kl_target": 6.0}, "kl_target multiplies kl_coef"),
])
def test_a_mistake_in_the_options_does_not_cost_the_run_there_is(
    stage, flags, words, runs, folder, tmp_path
):
    """Catches a run folder emptied before data, model and options are known to be good."""
    out = tmp_path / "old"
    out.mkdir()
    for name in ("ckpt.pt", "best.pt", "metrics.csv", "config.json"):
        (out / name).write_text("the old run")
    if "init" in flags:
        flags = {"init": str(out) if flags["init"] == "OUT" else str(runs / flags["init"])}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        script, cfg = config_of(stage, folder, runs, out=str(out), **flags)
        script.main(cfg)
    assert sorted(p.name for p in out.iterdir()) == [
        "best.pt", "ckpt.pt", "config.json", "metrics.csv",
    ]
    assert all(p.read_text() == "the old run" for p in out.iterdir())


@pytest.mark.parametrize("stage", ("lm", "reward", "ppo", "grpo"))
def test_a_clip_of_0_is_no_clip(stage, runs, folder, tmp_path):
    """Catches a run that learns nothing with a healthy column of gradients."""
    rows = []
    for clip in (0.0, 1e9):
        script, cfg = config_of(
            stage, folder, runs, out=str(tmp_path), steps=2, eval_every=1, grad_clip=clip)
        script.main(cfg)
        rows.append(rows_of(tmp_path / "metrics.csv"))
    assert rows[0] == rows[1]


def copy_of(folder: Path, to: Path, n_val: int = 40) -> Path:
    """The same data set in another folder, whose record files may be changed."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).symlink_to(path)
    for path in to.glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.unlink()
        path.write_bytes(b"".join(lines[:n_val] if path.stem == "val" else lines))
    return to


@pytest.mark.parametrize("stage, words", [
    ("clip", "has a single record, which has no other"), ("caption", "blip compares several"),
])
def test_a_single_held_out_record_is_no_measure(stage, words, runs, folder, tmp_path):
    """Catches a held-out loss of 0 and a perfect recall of one picture among one, for which
    best.pt is the untrained model.
    """
    data = copy_of(folder, tmp_path / "data", n_val=1)
    script, cfg = config_of(stage, folder, runs, data=str(data), out=str(tmp_path / "o"))
    with pytest.raises(ValueError, match=words):
        script.main(cfg)


def test_every_held_out_caption_meets_another(runs, folder, tmp_path, monkeypatch):
    """Catches a last part of one record: its only pair fits, so that a head that always says yes
    is right.
    """
    sizes = []
    evaluate_parts = train_caption.evaluate

    def spy(model, parts, *args):
        sizes.append([len(part.idx) for part in parts])
        return evaluate_parts(model, parts, *args)

    monkeypatch.setattr(train_caption, "evaluate", spy)
    data = copy_of(folder, tmp_path / "data")
    val = (data / "val.jsonl").read_bytes().splitlines(keepends=True)
    (data / "val.jsonl").write_bytes(b"".join(val + val[:25]))
    script, cfg = config_of(
        "caption", folder, runs, data=str(data), out=str(tmp_path / "o"), steps=0)
    script.main(cfg)
    assert sizes == [[33, 32]]


LONG = "red " * 400


def lengthen(record: dict) -> dict:
    """Make every text of a record longer than the context."""
    long = {"captions": [LONG], "question": LONG, "chosen": LONG}
    long["responses"] = [LONG, *record.get("responses", [])[1:]]
    asked = "<image>\nWhat?" if record.get("image") else "What?"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": LONG}]
    long["conversations"] = turns[:1] if "chosen" in record else turns
    return {key: long.get(key, value) for key, value in record.items()}


@pytest.mark.parametrize("stage, splits", [
    ("clip", ("train", "val")), ("caption", ("train", "val")), ("align", ("train", "val")),
    ("sft", ("train", "val")), ("reward", ("preferences", "preferences_val")),
    ("ppo", ("prompts", "prompts_val")), ("grpo", ("prompts", "prompts_val")),
    ("dpo", ("preferences_pairs", "preferences_val_pairs", "prompts_val")),
])
def test_records_too_long_are_refused_or_left_out_and_counted(
    stage, splits, runs, folder, tmp_path, capsys
):
    """Catches one dialogue that refuses a whole data set, and a split that a script forgets."""
    data = copy_of(folder, tmp_path / "data")
    changes = {"data": str(data), "out": str(tmp_path / "o"), "steps": 1}
    contents = {}
    for split in splits:
        path = data / f"{split}.jsonl"
        whole = path.read_text()
        first, others = whole.split("\n", 1)
        long = json.dumps(lengthen(json.loads(first)))
        path.write_text(f"{long}\n{others}")
        script, cfg = config_of(stage, folder, runs, **changes)
        name = json.loads(first)["id"]
        said = rf"{split}, record {name}: .* or leave out such records with --skip_long"
        with pytest.raises(ValueError, match=said):
            script.main(cfg)
        path.write_text(whole)
        contents[path] = f"{whole}{long}\n"
    for path, content in contents.items():
        path.write_text(content)
    capsys.readouterr()
    script, cfg = config_of(stage, folder, runs, skip_long=True, **changes)
    script.main(cfg)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert [line.split(" records of ")[1].split(":")[0] for line in said] == list(splits)
    assert all(line.startswith("left out 1 of ") for line in said)


def test_without_unix_every_script_starts_and_the_language_model_trains(folder, tmp_path):
    """Catches a module that Windows lacks, imported for one figure."""
    program = f"""
import importlib, sys
for name in ("resource", "fcntl", "grp", "pwd", "termios"):
    sys.modules[name] = None
for name in {[f"train_{stage}" for stage in STAGES]}:
    script = importlib.import_module(name)
    try:
        script.cli.__globals__["parse_args"](script.Config, ["--help"])
    except SystemExit as done:
        assert done.code == 0
import train_lm
from minivlm.running import machine
machine.STATUS = machine.Path("none")  # nor has Windows /proc
train_lm.main(train_lm.Config(data={str(folder)!r}, out={str(tmp_path)!r}, steps=1, n_layer=1,
                              n_embd=32, batch_size=2, eval_every=1, device="cpu"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(STAGES)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["0", "1"]
    assert "gb" not in (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")


@pytest.mark.parametrize("texts, words", [
    ([" ", "\n\t"], "holds nothing but white space"), (["A word."], "which needs 514"),
])
def test_a_text_to_learn_from_has_words(texts, words, folder, tmp_path):
    """Catches a language model of line breaks, and a text too short of which nobody says how long
    it must be.
    """
    data = copy_of(folder, tmp_path / "data")
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    (data / "text.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words):
        train_lm.main(train_lm.Config(data=str(data), out=str(tmp_path / "o")))


@pytest.mark.parametrize("changes, words", [
    ({"lr": 1e-4}, "other settings of lr"),
    ({"weight_decay": 0.5, "warmup": 1}, "of warmup, weight_decay"),
    ({"batch_size": 4}, "of batch_size"), ({"steps": 4}, "at step 4 already"),
])
def test_resuming_another_experiment_is_refused(changes, words, runs, folder, tmp_path):
    """Catches a run whose second half was made with other options than its config.json says."""
    shutil.copytree(runs / "sft", tmp_path / "sft")
    before = {p.name: p.read_bytes() for p in (tmp_path / "sft").iterdir()}
    script, cfg = config_of(
        "sft", folder, runs, out=str(tmp_path / "sft"), resume=True, **({"steps": 8} | changes)
    )
    with pytest.raises(ValueError, match=words):
        script.main(cfg)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "sft").iterdir()}


@pytest.mark.parametrize("turns,words", [
    ([], "conversations"),
    ([{"from": "human", "value": "<image>\nHi"}, {"from": "bot", "value": "Hello"}],
     "unknown role 'bot'"),
    ([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
     "0 <image> marks and 1 pictures"),
    ([{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": ""}], "empty"),
    ([{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "very " * 400}],
     "context"),
])
def test_a_bad_dialogue_stops_sft_with_the_record_named(turns, words, runs, folder, tmp_path):
    """Catches silent skips: a record that cannot be trained on is an error, never dropped."""
    for name in ("val.jsonl", "val.npy", "train.npy"):
        (tmp_path / name).symlink_to(folder / name)
    record = {"id": "bad-1", "image": "train.npy#0", "conversations": turns}
    good = (folder / "train.jsonl").read_text().splitlines()[0]
    (tmp_path / "train.jsonl").write_text(good + "\n" + json.dumps(record) + "\n")
    script, cfg = config_of(
        "sft", folder, runs, data=str(tmp_path), out=str(tmp_path / "o"), batch_size=2,
        grad_accum=1,
    )
    with pytest.raises(ValueError, match=words) as error:
        script.main(cfg)
    assert "bad-1" in str(error.value) or "train.jsonl:2" in str(error.value)


@pytest.mark.parametrize("stage", ("sft", "dpo"))
def test_each_mark_gets_the_next_picture_of_its_record(stage, runs, folder, tmp_path, monkeypatch):
    """Catches pictures of one record that go to another, or in another order, where records have
    one, two or three.
    """
    data, rng = tmp_path / "data", random.Random(0)
    shutil.copytree(folder, data)
    splits = {"sft": ("train", "val"), "dpo": ("preferences_pairs", "preferences_val_pairs")}[stage]
    names_of = {}
    for split in splits:
        records = load_records(folder, split, ("image", "conversations") if stage == "sft" else ())
        for r in records:
            r["image"] = [r["image"], "val.npy#3", "val.npy#4"][:rng.randint(1, 3)]
            first = r["conversations"][0]
            first["value"] = "<image>\n" * (len(r["image"]) - 1) + first["value"]
            names_of[str(r["id"])] = r["image"]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    seen = []

    def kept(*args, **options):
        seen.append(collate(*args, **options))
        return seen[-1]

    monkeypatch.setattr(train_sft if stage == "sft" else pairs, "collate", kept)
    script, cfg = config_of(
        stage, folder, runs, data=str(data), out=str(tmp_path / "run"), steps=1)
    script.main(cfg)
    pictures = Pictures(data, 60)
    image = checkpoint.tokenizer_of(checkpoint.load(runs / "sft", ("sft",))).image
    for batch in seen:
        names = [names_of.get(str(i), []) for i in batch.ids]
        assert batch.n_images == [len(n) for n in names]
        wanted = [name for n in names for name in n]
        assert torch.equal(batch.images, pictures.get(wanted))
        assert (batch.idx == image).sum(1).tolist() == [9 * n for n in batch.n_images]
    assert {1, 2, 3} <= {n for batch in seen for n in batch.n_images}


def test_siglips_held_out_loss_is_that_of_batches_like_those_of_training(
    runs, folder, tmp_path, monkeypatch
):
    """Catches a best.pt from before the training: among more pairs, fewer belong together, and the
    loss of a trained model is higher than that of a new one.
    """
    sizes = []

    def size(img_z, txt_z, *_):
        sizes.append(len(img_z))
        return len(img_z) + 0 * (img_z * txt_z).sum()

    monkeypatch.setitem(train_clip.LOSSES, "siglip", size)
    script, cfg = config_of(
        "clip", folder, runs, out=str(tmp_path), loss="siglip", batch_size=16, steps=1)
    script.main(cfg)
    assert sizes == [16, 16, 8, 16, 16, 16, 8]                       # of 40 held-out pairs
    losses = [float(row["val_loss"]) for row in rows_of(tmp_path / "metrics.csv")]
    assert losses == [pytest.approx((16 * 16 + 16 * 16 + 8 * 8) / 40)] * 2
