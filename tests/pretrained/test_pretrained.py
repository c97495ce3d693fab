"""minivlm/pretrained without transformers: weights there and back, and what is refused.

tests/parity sets both beside transformers itself.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import train_align
from conftest import stir
from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.loading.models import clip_from, fit_of, vlm_from
from minivlm.pretrained import weights as pretrained
from minivlm.pretrained.export import Config, export, main, merges_of, tokenizer_file
from minivlm.pretrained.tokenizers import ClipTokenizer, read_tokenizer
from minivlm.pretrained.weight_names import llava_names, to_theirs
from minivlm.running import checkpoint
from minivlm.tokenizer import (
    DIGITS_PATTERN, GPT2_PATTERN, PATTERNS, SPECIALS, Tokenizer, byte_letters,
)
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM

ROOT = Path(__file__).parents[2]


def state_of(model: nn.Module, stage: str, tokenizer: Tokenizer | None = None) -> dict:
    """A checkpoint as `checkpoint.load` gives it."""
    state = {"stage": stage, "configs": {"model": asdict(model.config)},
             "model": model.state_dict()}
    return state | ({"tokenizer": tokenizer.to_text()} if tokenizer else {})


@pytest.fixture
def gpt_config(gpt_config: GPTConfig) -> GPTConfig:
    """GPT-2's architecture, to which models are exported."""
    return replace(gpt_config, rotary_base=0.0)


@pytest.fixture
def words() -> Tokenizer:
    """A tokenizer with joins."""
    return Tokenizer.train(["a red circle", "the red square, a blue circle"] * 3, 290)


@pytest.fixture
def published(tmp_path, clip, gpt_config, words) -> Path:
    """Two folders as people have them: clip and gpt2."""
    export(state_of(clip, "clip"), tmp_path / "clip")
    gpt = stir(GPT(replace(gpt_config, vocab_size=words.vocab_size)))
    export(state_of(gpt, "lm", words), tmp_path / "gpt2")
    return tmp_path


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- as the page says ---


def python(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run one of the page's lines in a folder; at a prompt, talk about two pictures."""
    said = "What is this?\n/image photo.jpg\nAnd this?\n\n"
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, input=said)


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """Where the page's six lines have run: as printed, but for fewer steps and rows.

    Files and folders have their published names and layouts; the weights are few and random.
    """
    tmp_path = tmp_path_factory.mktemp("llava")
    page = (ROOT / "docs" / "published_weights.md").read_text()
    lines = re.findall(r"^    \.venv/bin/python (.*)$", page, re.MULTILINE)
    assert len(lines) == 6
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name == "minivlm":
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=shutil.ignore_patterns("prepared*"))
    ids = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258, "<image>": 259}
    words = Tokenizer({bytes([i]): i for i in range(256)}, DIGITS_PATTERN, ids, "chatml")
    llama = GPTConfig(260, 512, 2, 2, 32, act="swiglu", n_inner=48, norm="rms", bias="none",
                      n_kv_head=1, learned_positions=False, rotary_base=1e4)
    export(state_of(GPT(llama), "lm", words), tmp_path / "SmolLM2-135M-Instruct")
    vit = ViTConfig(224, 56, 2, 2, 32, "gelu_tanh", kind="siglip", n_inner=48, norm_eps=1e-6)
    siglip = CLIPConfig(vit, 90, 16, 1, 2, 32, 32, "gelu_tanh", logit_bias=True, text_n_inner=48)
    export(state_of(CLIP(siglip), "clip"), tmp_path / "siglip-base-patch16-224")
    for file, folder, turns in (
        ("blip_laion_cc_sbu_558k", "pretrain", ["What is this?\n<image>", "a red circle"]),
        ("llava_v1_5_mix665k", "finetune", ["<image>\nWhat is this?", "Red.", "Why?", "So."]),
    ):
        (tmp_path / folder).mkdir()
        records = []
        for i in range(100):
            Image.new("RGB", (32, 24), (i, 0, 0)).save(tmp_path / folder / f"{i}.jpg")
            said = [{"from": ("human", "gpt")[k % 2], "value": t} for k, t in enumerate(turns)]
            records.append({"id": str(i), "image": f"{i}.jpg", "conversations": said})
        (tmp_path / f"{file}.json").write_text(json.dumps(records))
    shutil.copy(tmp_path / "finetune" / "7.jpg", tmp_path / "photo.jpg")
    for line in lines:
        line = re.sub(r"--batch_size \d+", "--batch_size 4", line)
        line = re.sub(r"--steps \d+", "--steps 2", line)
        done = python(tmp_path, *line.split())
        assert not done.returncode, (line, done.stderr[-500:])
    return tmp_path


def changed(folder: Path, file: str, change) -> Path:
    """A copy of a folder whose JSON file is changed."""
    copy = folder.with_name(f"{folder.name} changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


def test_both_stages_of_llava_are_the_pages_six_lines(llava):
    """Catches a line that does not run as printed."""
    config = json.loads((llava / "llava-smollm2-135m" / "config.json").read_text())
    assert (config["text_config"]["model_type"], config["model_type"]) == ("llama", "llava")


def no_end(tokenizer: dict) -> None:
    tokens = tokenizer["added_tokens"]
    tokens[:] = [t for t in tokens if t["content"] != "<|im_end|>"]


def nine_more(tokenizer: dict) -> None:
    last = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"] += [
        last | {"id": last["id"] + i, "content": f"<|{i}|>"} for i in range(1, 10)]


@pytest.mark.parametrize("name, file, change, words", [
    ("llava-smollm2-135m", "config.json", lambda c: c["text_config"].update(model_type="mistral"),
     "model_type is 'mistral', minivlm has gpt2, llama, qwen2, qwen3"),
    ("SmolLM2-135M-Instruct", "config.json",
     lambda c: c.update(num_attention_heads=3, num_key_value_heads=2),
     "n_head 3 is not a multiple of n_kv_head 2"),
    ("SmolLM2-135M-Instruct", "tokenizer.json", nine_more, "269 tokens do not fit 260 embeddings"),
    ("llava-smollm2-135m", "tokenizer.json", no_end, "needs the special token '<|im_end|>'"),
])
def test_a_folder_that_does_not_go_together_is_one_line(name, file, change, words, llava):
    """Catches a traceback, or a model that answers without an end."""
    folder = str(changed(llava / name, file, change))
    if name.startswith("llava"):
        done = python(llava, "chat.py", "--run", folder, "--ask", "What?")
    else:
        done = python(llava, "train_align.py", "--llm", folder, "--vision",
                      "siglip-base-patch16-224", "--data", "data/llava/prepared1", "--steps", "0")
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("n_images, n_marks, words", [
    (2, 1, "1 <image> marks and 2 pictures"), (1, 2, "2 <image> marks and 1 pictures"),
    (40, 40, "tokens, image tokens included; the context holds 512"),
])
def test_a_dialogue_and_its_pictures_that_do_not_go_together_are_one_line(
    n_images, n_marks, words, llava, tmp_path
):
    """Catches a picture that is dropped in silence, and a dialogue that is cut."""
    data = tmp_path / "data"
    shutil.copytree(llava / "data/llava/prepared2", data)
    first, *others = (data / "train.jsonl").read_text().splitlines()
    record = json.loads(first)
    record["image"] = [record["image"]] * n_images
    record["conversations"][0]["value"] = "<image>" * n_marks + "What?"
    (data / "train.jsonl").write_text("\n".join([json.dumps(record), *others]))
    done = python(llava, "train_sft.py", "--init", "runs/align", "--data", str(data),
                  "--n_texts", "0", "--steps", "0")
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


# --- there and back ---


def test_what_is_exported_is_read_back_bit_for_bit(published, clip, words):
    """Catches a map turned once only, queries for keys, a config entry that is not written."""
    state = pretrained.read_vision(published / "clip")
    assert equal(state["model"], clip.state_dict())
    assert clip_from(state).config == clip.config
    lm = pretrained.read_lm(published / "gpt2")
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**lm["configs"]["model"]))
    gpt.load_state_dict(lm["model"])
    assert gpt.head.weight is gpt.wte.weight
    export(state_of(gpt, "lm", words), published / "again")
    assert equal(*(load_file(published / name / "model.safetensors") for name in ("gpt2", "again")))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_tokenizer_is_read_back_as_it_was(pattern, words, tmp_path):
    """Catches a split that goes out in a form in which it is not taken in again."""
    ours = Tokenizer(words.ranks, pattern)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_file(ours)))
    read, n_known = read_tokenizer(tmp_path)
    assert (read.identity, n_known) == (ours.identity, ours.vocab_size)


def test_an_export_replaces_an_earlier_one(published, vlm_config, words):
    """Catches a chat template beside a model that has none, an index that leads to other weights, a
    folder without config.json that passes for whole.
    """
    folder = published / "gpt2"
    config = replace(vlm_config, projector="llava", image_id=words.image,
                     gpt=replace(vlm_config.gpt, vocab_size=words.vocab_size))
    export(state_of(VLM(config), "sft", words), folder)
    assert {"chat_template.jinja", "processor_config.json"} <= {p.name for p in folder.iterdir()}
    stop = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stop == words.end and json.loads(
        (folder / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    (folder / "model.safetensors.index.json").write_text("{}")
    gpt = GPT(config.gpt)
    export(state_of(gpt, "lm", words), folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"]
    assert (folder / "model.safetensors").stat().st_mode & 0o044
    assert equal(pretrained.read_lm(folder)["model"], gpt.state_dict())


@pytest.mark.parametrize("out", ["", "RUN"])
def test_an_export_does_not_overwrite_a_run(out, runs):
    """Catches `--out` that is the run itself, whose config.json would be lost, or no folder."""
    out = out and str(runs / "lm")
    with pytest.raises(ValueError, match="out is '.*'; name a folder that is not a run's"):
        main(Config(run=str(runs / "lm"), out=out))


@pytest.mark.parametrize("layout", ["bin", "two parts", "with a prefix and buffers"])
def test_every_layout_that_people_have_is_read(layout, published):
    """Catches files of older versions, and weights in several parts."""
    folder = published / "gpt2"
    before = pretrained.read_lm(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if layout == "two parts":
        names = sorted(weights)
        where = {}
        for i, part in enumerate((names[:5], names[5:])):
            file = f"pytorch_model-{i}.bin"
            torch.save({k: weights[k] for k in part}, folder / file)
            where |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": where}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        if layout != "bin":  # as the first GPT-2 stands there
            weights = {k.removeprefix("transformer."): v for k, v in weights.items()}
            weights |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "lm_head.weight":
                        weights["wte.weight"].clone(), "h.1.attn.masked_bias": torch.ones(())}
        torch.save(weights, folder / "pytorch_model.bin")
    assert equal(pretrained.read_lm(folder)["model"], before["model"])


def test_half_precision_is_widened(published, clip):
    """Catches a tower that computes in float16 because its file was saved so."""
    before = clip.vit.pos.half().float()
    folder = published / "clip"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({k: v.half() for k, v in weights.items()}, folder / "pytorch_model.bin")
    model = clip_from(pretrained.read_vision(folder))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.vit.pos, before)


def know_one_special(folder: Path) -> None:
    """Leave <|endoftext|> alone of the special tokens, as GPT-2 has it."""
    file = json.loads((folder / "tokenizer.json").read_text())
    file["added_tokens"] = file["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(file))


def test_gpt2_gets_the_special_tokens_that_it_lacks(published, words):
    """Catches rows in the wrong place or of the wrong size: GPT-2 has <|endoftext|> only."""
    folder, V = published / "gpt2", len(words.ranks) + 1
    know_one_special(folder)
    weights = load_file(folder / "model.safetensors")
    wte = weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:V].clone()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": V}))
    lm = pretrained.read_lm(folder)
    grown = lm["model"]["wte.weight"]
    assert lm["configs"]["model"]["vocab_size"] == len(grown) == words.vocab_size
    assert torch.equal(grown[:V], wte) and len(grown) - V == len(SPECIALS) - 1
    torch.testing.assert_close(grown[V:], wte.mean(0).expand(len(SPECIALS) - 1, -1))


@pytest.mark.parametrize("n_special", [1, len(SPECIALS)])
def test_rows_that_only_make_a_round_number_are_left_out(n_special, published, words):
    """Catches an id that the chatbot may write and no tokenizer can read, and special tokens that
    start as what stands in rows which nothing has trained.
    """
    folder, known = published / "gpt2", len(words.ranks) + n_special
    if n_special == 1:
        know_one_special(folder)
    weights = load_file(folder / "model.safetensors")
    wte = weights["transformer.wte.weight"][:known]
    weights["transformer.wte.weight"] = torch.cat([wte, 9 * torch.ones(64, wte.shape[1])])
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": known + 64}))
    lm = pretrained.read_lm(folder)
    grown = lm["model"]["head.weight"]
    assert lm["configs"]["model"]["vocab_size"] == len(grown) == words.vocab_size
    assert torch.equal(grown[:known], wte)
    torch.testing.assert_close(grown[known:], wte.mean(0).expand(len(SPECIALS) - n_special, -1))
    weights["transformer.wte.weight"] = wte[:200].clone()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    with pytest.raises(ValueError, match=f"{known} tokens do not fit 200 embeddings"):
        pretrained.read_lm(folder)


def test_positions_keep_what_they_are_at_their_own_resolution():
    """Catches interpolation in the wrong direction: rows and columns, and the class token."""
    pos = torch.randn(1 + 9, 4)
    torch.testing.assert_close(pretrained.resize_positions(pos, 9), pos)
    ramp = torch.zeros(1 + 16, 2)
    ramp[0] = 7
    ramp[1:, 0] = torch.arange(4.0).repeat_interleave(4)             # grows downwards
    ramp[1:, 1] = torch.arange(4.0).repeat(4)                        # grows to the right
    big = pretrained.resize_positions(ramp, 64)
    assert torch.equal(big[0], ramp[0])
    grid = big[1:].view(8, 8, 2)
    torch.testing.assert_close(grid[..., 0], grid[..., 1].T)
    assert bool((grid[1:, :, 0] > grid[:-1, :, 0]).all()) and grid[:, :, 0].std(1).max() < 1e-6


def test_a_tower_at_another_resolution_takes_its_pictures(published):
    """Catches a config that still names the old size."""
    state = pretrained.read_vision(published / "clip", image_size=32)
    model = clip_from(state)
    assert model.encode_image(torch.randn(2, 3, 32, 32)).shape == (2, 16)
    assert model.config.vit.n_tokens == 16
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 8"):
        pretrained.read_vision(published / "clip", image_size=30)


def test_the_merges_of_trained_ranks_make_them_again(words):
    """Catches a token taken apart in another place than where it was joined."""
    merges = merges_of(words.ranks)
    assert [a + b for a, b in merges] == [t for t in words.ranks if len(t) > 1]
    assert all(words.ranks[x] < words.ranks[a + b] for a, b in merges for x in (a, b))
    file = tokenizer_file(words)
    assert [t["id"] for t in file["added_tokens"]] == list(
        range(len(words.ranks), words.vocab_size))


def test_llava_is_built_from_published_towers_and_learns(published, folder, tmp_path):
    """Catches `--vision DIR --llm DIR` that take other weights, or train them: the ViT at the
    data's resolution, GPT-2 with its own tokenizer, and the projector alone moves.
    """
    out = tmp_path / "align"
    gpt = json.loads((published / "gpt2" / "config.json").read_text())
    lm = pretrained.read_lm(published / "gpt2")
    grown = stir(GPT(GPTConfig(**lm["configs"]["model"] | {"block_size": 320})))
    export({"stage": "lm", "configs": {"model": asdict(grown.config)}, "model": grown.state_dict(),
            "tokenizer": lm["tokenizer"]}, published / "gpt2")
    assert gpt["n_positions"] == 32
    data = tmp_path / "data"  # its pictures cut to a multiple of the ViT's patches
    shutil.copytree(folder, data)
    for name in ("train", "val"):
        np.save(data / f"{name}.npy", np.load(folder / f"{name}.npy")[:, 6:54, 6:54])
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps(meta | {"image_size": 48}))
    options = {"data": str(data), "vision": str(published / "clip"), "image_size": 48,
               "llm": str(published / "gpt2"), "projector": "llava", "out": str(out)}
    cfg = train_align.Config(steps=4, eval_every=2, batch_size=4, clip="none", lm="none", **options)
    row = train_align.main(cfg)
    state = checkpoint.load(out / "ckpt.pt", ("align",))
    model = vlm_from(state)
    clip = pretrained.read_vision(published / "clip", 48)["model"]
    assert all(torch.equal(v, clip[f"vit.{k}"]) for k, v in model.vit.state_dict().items())
    assert equal(model.gpt.state_dict(), grown.state_dict())
    assert row["val_loss"] < 20 and not isinstance(model.projector.norm, nn.LayerNorm)
    main(Config(run=str(out), out=str(tmp_path / "llava")))
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["image_token_index"] == model.config.image_id
    written = load_file(tmp_path / "llava" / "model.safetensors")
    assert equal(written, to_theirs(llava_names(model.config), model.state_dict()))


def test_published_folders_are_no_place_for_a_run(published):
    """Catches `--out` that overwrites what it starts from."""
    with pytest.raises(ValueError, match="vision and out are both"):
        train_align.main(train_align.Config(vision=f"{published}/clip", out=f"{published}/clip"))
    with pytest.raises(ValueError, match="image_size is for --vision"):
        train_align.Config(image_size=48)


# --- what is refused ---


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "align"}, "model_type is 'align', minivlm has clip and siglip"),
    ({"vision_config": {"hidden_size": 48}}, r"intermediate_size is 128, minivlm has 192 only"),
    ({"vision_config": {"hidden_size": "32"}}, "hidden_size is '32', expected 1 .. 1000000"),
    ({"vision_config": {"num_hidden_layers": 10 ** 9}}, "num_hidden_layers is 1000000000, exp"),
    ({"vision_config": {"num_hidden_layers": True}}, "num_hidden_layers is True, expected"),
    ({"vision_config": {"num_hidden_layers": 3}}, "lacks 16 tensors .*another architecture"),
    ({"vision_config": {"num_hidden_layers": 1}}, r"feature_layer -2 is not in -1 \.\. -1"),
    ({"vision_config": {"num_attention_heads": 5}}, "n_embd 32 is not a multiple of n_head 5"),
    ({"vision_config": {"image_size": 24}}, r"1 weights .*'vit.pos': expected \[10, 32\], got \["),
    ({"vision_config": {"hidden_act": "relu"}}, "act 'relu' is not one of"),
    ({"vision_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps is 1e-06, minivlm has 1e-05"),
    ({"text_config": {"vocab_size": 10 ** 5}}, r"'text.wte.weight': expected \[100000, 32\], got"),
    ({"text_config_dict": {"vocab_size": 5}}, r"'text.wte.weight': expected \[5, 32\], got"),
    ({"text_config": 7}, "text_config is no JSON object"),
    ({"projection_dim": -1}, "projection_dim is -1, expected"),
])
def test_a_clip_that_does_not_fit_is_named(changes, message, published):
    """Catches torch's list of a hundred keys, memory for absurd sizes, and a silent misfit."""
    path = published / "clip" / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = config[key] | value if nested else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        pretrained.read_vision(published / "clip")


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "gemma"}, "model_type is 'gemma', minivlm has gpt2, llama, qwen2, qwen3"),
    ({"activation_function": "relu"}, "activation_function is 'relu', minivlm has gelu_new, gelu"),
    ({"activation_function": ["gelu"]}, r"activation_function is \['gelu'\], minivlm has"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"n_inner": 64}, "n_inner is 64, minivlm has 128 only"),
    ({"n_positions": 64}, r"'wpe.weight': expected \[64, 32\], got \[32, 32\]"),
    ({"vocab_size": None}, "vocab_size is None, expected 1 .."),
])
def test_a_gpt2_that_does_not_fit_is_named(changes, message, published):
    """Catches the same for GPT-2."""
    path = published / "gpt2" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        pretrained.read_lm(published / "gpt2")


@pytest.mark.parametrize("act, theirs", [("gelu_tanh", "gelu_new"), ("gelu", "gelu")])
def test_a_gpt2_keeps_its_activation(act, theirs, gpt_config, words, tmp_path):
    """Catches the exact GELU written, or read back, as the approximate one; and any other."""
    config = replace(gpt_config, vocab_size=words.vocab_size, act=act)
    export(state_of(GPT(config), "lm", words), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["activation_function"] == theirs
    assert pretrained.read_lm(tmp_path)["configs"]["model"]["act"] == act
    with pytest.raises(ValueError, match="act is 'quick_gelu', GPT-2 has one of gelu_tanh, gelu"):
        export(state_of(GPT(replace(config, act="quick_gelu")), "lm", words), tmp_path)


def test_a_head_of_its_own_is_refused(published):
    """Catches a head that is thrown away in silence."""
    folder = published / "gpt2"
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="the head is not tied to the embedding"):
        pretrained.read_lm(folder)


@pytest.mark.parametrize("file, content, message", [
    ("config.json", None, r"no config\.json in ."),
    ("config.json", "{", r"config\.json is no JSON"),
    ("config.json", "[" * 10 ** 5, r"config\.json is no JSON"),
    ("config.json", "[]", r"config\.json holds no JSON object"),
    ("model.safetensors", None, "neither model.safetensors nor pytorch_model.bin in"),
    ("model.safetensors", "nothing", r"model\.safetensors is no readable file of tensors"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}', "does not name files of its"),
    ("model.safetensors.index.json", '{"weight_map": {"a": 1, "b": "c"}}', "does not name files"),
    ("model.safetensors.index.json", '{"weight_map": {"a": [1]}}', "does not name files of its"),
    ("model.safetensors.index.json", '{"weight_map": ["a"]}', "does not name files of its folder"),
    ("model.safetensors.index.json", "{}", "does not name files of its folder"),
    ("tokenizer.json", '{"model": {"vocab": {}, "merges": [["a", 3]]}}', "'!' is no letter of a"),
    ("tokenizer.json", '{"model": {"vocab": {}, "merges": []}, "added_tokens": [1]}', "added_tok"),
    ("tokenizer.json", '{"model": 3}', "holds no vocabulary with its merges"),
    ("tokenizer.json", '{"model": {"vocab": {}, "merges": []}}', "'!' is no letter of a byte, or"),
    ("tokenizer.json", '{"model": {"vocab": {}, "merges": ["a b c"]}}', "holds no vocabulary"),
])
def test_a_file_that_is_missing_or_damaged_is_named(file, content, message, published):
    """Catches a traceback out of a parser, and a path that leads out of the folder."""
    path = published / "gpt2" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrained.read_lm(published / "gpt2")


def test_code_in_weights_is_not_run(published):
    """Catches a pickle that is opened in full: a folder from elsewhere must not run a program."""
    class Bomb:
        def __reduce__(self):
            return Path.mkdir, (published / "hit",)

    folder = published / "clip"
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is no readable file of tensors"):
        pretrained.read_vision(folder)
    assert not (published / "hit").exists()


@pytest.mark.parametrize("weights, message", [
    ([1, 2], "no readable file of tensors"), ({"a": 1}, "more than named tensors"),
    ({"a": torch.tensor([1.0, float("nan")])}, "a has numbers that are not finite"),
])
def test_weights_that_are_none_are_named(weights, message, published):
    """Catches a list taken for a dictionary, and a loss that is nan from the first step on."""
    (published / "clip" / "model.safetensors").unlink()
    torch.save(weights, published / "clip" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin.* {message}"):
        pretrained.read_vision(published / "clip")


def test_a_language_model_may_come_without_tokenizer(published, words):
    """Catches: embeddings cut to a vocabulary that nobody gave; a KeyError where one is needed."""
    before = pretrained.read_lm(published / "gpt2")
    (published / "gpt2" / "tokenizer.json").unlink()
    lm = pretrained.read_lm(published / "gpt2")
    assert "tokenizer" not in lm and equal(lm["model"], before["model"])
    with pytest.raises(ValueError, match="comes without a tokenizer.json"):
        checkpoint.tokenizer_of(lm)


SPLIT = "text is split by a rule that minivlm does not have"
AS_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}


@pytest.mark.parametrize("changes, message", [
    ({"pre_tokenizer": None}, SPLIT), ({"pre_tokenizer": {"type": "Whitespace"}}, SPLIT),
    ({"pre_tokenizer": AS_GPT2 | {"add_prefix_space": True}}, SPLIT),
    ({"pre_tokenizer": AS_GPT2 | {"use_regex": False}}, SPLIT),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}}, SPLIT),
    ({"normalizer": {"type": "Lowercase"}}, "normalizer is {'type': 'Lowercase'}, minivlm has N"),
    ({"normalizer": {"type": "NFC", "x": 1}}, "minivlm has NFC only"),
    ({"added_tokens": [{"id": 3, "content": "<|endoftext|>"}]}, "two tokens have one id"),
])
def test_a_tokenizer_that_reads_text_in_another_way_is_refused(changes, message, published):
    """Catches text that comes out as other tokens than the weights were trained with."""
    path = published / "gpt2" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        read_tokenizer(published / "gpt2")


def test_the_split_of_gpt2s_own_file_is_known(published, words):
    """Catches a file of an older version, which leaves out what is so by default."""
    path = published / "gpt2" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": AS_GPT2}))
    assert read_tokenizer(published / "gpt2")[0].pattern == GPT2_PATTERN


def test_merges_or_a_model_of_another_kind_are_refused(published):
    """Catches joins in another order than their ids, and pieces that were not joined at all."""
    path = published / "gpt2" / "tokenizer.json"
    file = json.loads(path.read_text())
    path.write_text(json.dumps(file | {"model": file["model"] | {"type": "Unigram"}}))
    with pytest.raises(ValueError, match="holds no vocabulary with its merges"):
        read_tokenizer(published / "gpt2")
    file["model"]["merges"].reverse()
    path.write_text(json.dumps(file))
    with pytest.raises(ValueError, match="the merges do not come in the order of their ids"):
        read_tokenizer(published / "gpt2")


def test_pictures_that_are_prepared_in_another_way_are_refused(published):
    """Catches a CLIP trained with another mean, which would be given ours in silence."""
    path = published / "clip" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"image_mean is \[0.5, 0.5, 0.5\], minivlm has \[0.48"):
        pretrained.read_vision(published / "clip")


@pytest.mark.parametrize("mode", ("crop", "pad", "stretch"))
def test_how_pictures_are_made_square_goes_along(mode, published, clip, tmp_path):
    """Catches a model of padded pictures that other programs, or we, would show cropped ones."""
    state = state_of(clip, "clip")
    state["configs"]["fit"] = mode
    export(state, tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (written["do_pad"], written["do_center_crop"]) == (mode == "pad", mode == "crop")
    assert ("shortest_edge" in written["size"]) == (mode != "stretch")
    assert fit_of(pretrained.read_vision(tmp_path)) == mode


def test_a_missing_package_is_one_line(published, monkeypatch):
    """Catches a traceback where safetensors is not installed, in reading and in writing."""
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for act in (lambda: pretrained.read_vision(published / "clip"),
                lambda: export(state_of(GPT(GPTConfig(n_layer=1, n_embd=32)), "lm"), published)):
        with pytest.raises(ValueError, match="another package: pip install safetensors"):
            act()


def test_what_llava_lacks_is_said(vlm, tokenizer, tmp_path):
    """Catches an export that loads and answers otherwise: its projector has no norm there."""
    said = "two layers and no norm in its projector, .* 'mlp'; train_align"
    with pytest.raises(ValueError, match=said):
        export(state_of(vlm, "sft", tokenizer), tmp_path)
    config = replace(vlm.config, projector="llava", prefix_lm=True)
    with pytest.raises(ValueError, match="reads prompts causally, this model does not"):
        export(state_of(VLM(config), "sft", tokenizer), tmp_path)
    assert not list(tmp_path.iterdir())


# --- CLIP's tokenizer ---


@pytest.fixture
def clip_words() -> ClipTokenizer:
    """The letters with and without their end, and three merges."""
    letters = list(byte_letters().values())
    merges = ["c a", "ca t</w>", "t h"]
    pieces = [*letters, *(x + "</w>" for x in letters), *(m.replace(" ", "") for m in merges),
              "<|startoftext|>", "<|endoftext|>"]
    return ClipTokenizer({p: i for i, p in enumerate(pieces)}, merges)


@pytest.mark.parametrize("text, pieces", [
    ("cat", ["cat</w>"]), ("  CAT \n", ["cat</w>"]), ("cats", ["ca", "t", "s</w>"]),
    ("cat's", ["cat</w>", "'", "s</w>"]), ("12", ["1</w>", "2</w>"]), ("the", ["th", "e</w>"]),
    ("", []), ("a!?", ["a</w>", "!", "?</w>"]), ("e\u0301", ["Ã", "©</w>"]),
    ("<|end|>", ["<", "|</w>", "e", "n", "d</w>", "|", "></w>"]),
])
def test_clips_tokenizer_by_hand(text, pieces, clip_words):
    """Catches a space that is a token, a digit joined to another, a special token out of text."""
    ids = clip_words.encode(text)
    assert [clip_words.pieces[i] for i in ids] == pieces
    if text.isascii() and "'" not in text:
        assert clip_words.decode(ids).replace(" ", "") == "".join(text.lower().split())


def test_rows_stand_between_their_special_tokens(clip_words):
    """Catches a length that leaves the end token out: the text's feature is taken there."""
    idx, lengths = clip_words.rows(["cat", "the cat"])
    start, end = clip_words.startoftext, clip_words.endoftext
    assert idx.tolist() == [[start, *clip_words.encode("cat"), end, end, end],
                            [start, *clip_words.encode("the cat"), end]]
    assert lengths.tolist() == [3, 5]
    with pytest.raises(ValueError, match="'the cat' has 5 tokens, the text tower holds 4"):
        clip_words.rows(["cat", "the cat"], 4)
    with pytest.raises(ValueError, match="no texts"):
        clip_words.rows([])
    with pytest.raises(ValueError, match=r"2 pieces have no id, among them \['<\|startoftext"):
        ClipTokenizer({k: v for k, v in clip_words.vocab.items() if "oftext" not in k}, [])
