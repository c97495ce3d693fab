"""Published layouts beside transformers: true geometries, tokenizers, other resolutions.

The weights are random, as nothing can be downloaded here; sizes, names and files are those that
people have.
"""

import gzip
import importlib
import json
import random
import unicodedata
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import train_align
import train_dpo
import train_sft
from minivlm.clip import CLIP, CLIPConfig
from minivlm.conversation import prompt_of, render
from minivlm.generate import generate
from minivlm.gpt import GPT, GPTConfig
from minivlm.loading.images import Pictures
from minivlm.loading.models import clip_from, gpt_from, vlm_from
from minivlm.loading.prepared import load_records
from minivlm.pretrained import families, weights as pretrained
from minivlm.pretrained.export import export, tokenizer_file
from minivlm.pretrained.tokenizers import ClipTokenizer, read_tokenizer
from minivlm.pretrained.weight_names import (
    clip_names, gpt2_names, llava_names, lm_names, to_theirs,
)
from minivlm.running import checkpoint
from minivlm.tokenizer import SPECIALS, Tokenizer, byte_letters
from minivlm.vlm import VLM, VLMConfig
from parity.peers import folder_of
from parity.test_models import half, hf  # noqa: F401
from test_families import PUBLISHED

# width, layers, heads of the vision tower, image and patch size; the same of the text tower; space
CLIPS = {
    "ViT-B/32": (768, 12, 12, 224, 32, 512, 8, 512),
    "ViT-B/16": (768, 12, 12, 224, 16, 512, 8, 512),
    "ViT-L/14": (1024, 24, 16, 224, 14, 768, 12, 768),
    "ViT-L/14-336": (1024, 24, 16, 336, 14, 768, 12, 768),
}
GPTS = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20),
        "gpt2-xl": (1600, 48, 25)}  # width, layers, heads


SMOL, QWEN = PUBLISHED["SmolLM2-135M"], PUBLISHED["Qwen2.5-0.5B"]
LMS = PUBLISHED | {
    "SmolLM2-360M": SMOL | {
        "hidden_size": 960, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5, "intermediate_size": 2560},
    "SmolLM2-1.7B": SMOL | {
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 8192, "rope_theta": 130000},
    "TinyLlama-1.1B": SMOL | {
        "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "intermediate_size": 5632, "vocab_size": 32000,
        "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False},
    "Vicuna-7B": SMOL | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
        "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": False},
    "Qwen2.5-7B": QWEN | {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
        "tie_word_embeddings": False, "max_window_layers": 28},
}
# width, layers, heads, width of the MLP, image and patch size; the text tower's are the same, but
# its vocabulary
SIGLIPS = {
    "SigLIP base-patch16-224": (768, 12, 12, 3072, 224, 16, 32000),
    "SigLIP large-patch16-256": (1024, 24, 16, 4096, 256, 16, 32000),
    "SigLIP so400m-patch14-384": (1152, 27, 16, 4304, 384, 14, 32000),
    "SigLIP 2 base-patch16-224": (768, 12, 12, 3072, 224, 16, 256000),
}


def siglip_of(hf, name: str):
    """transformers' config of a published SigLIP."""
    C, n_layer, n_head, n_inner, size, patch, V = SIGLIPS[name]
    both = {"hidden_size": C, "intermediate_size": n_inner, "num_hidden_layers": n_layer,
            "num_attention_heads": n_head}
    return hf.SiglipConfig(vision_config=both | {"image_size": size, "patch_size": patch},
                           text_config=both | {"vocab_size": V})


def shapes(weights: dict) -> dict:
    return {name: tuple(w.shape) for name, w in weights.items() if "position_ids" not in name}


def clip_of(hf, name: str):
    """transformers' config of a published CLIP."""
    C, n_layer, n_head, size, patch, text_C, text_head, space = CLIPS[name]
    return hf.CLIPConfig(
        vision_config={"hidden_size": C, "intermediate_size": 4 * C, "num_hidden_layers": n_layer,
                       "num_attention_heads": n_head, "image_size": size, "patch_size": patch},
        text_config={"hidden_size": text_C, "intermediate_size": 4 * text_C,
                     "num_attention_heads": text_head, "eos_token_id": 2},
        projection_dim=space)


@pytest.mark.parametrize("name", CLIPS)
def test_every_published_clip_has_the_names_and_shapes_that_we_read(hf, name):
    """Catches a size that only the smallest model has: all tensors, by name and shape."""
    with torch.device("meta"):
        theirs = hf.CLIPModel(clip_of(hf, name)).state_dict()
        C, n_layer, n_head, size, patch, text_C, text_head, space = CLIPS[name]
        c = CLIPConfig.from_dict({
            "vit": {"image_size": size, "patch_size": patch, "n_layer": n_layer, "n_head": n_head,
                    "n_embd": C}, "vocab_size": 49408, "text_block_size": 77, "text_n_layer": 12,
            "text_n_head": text_head, "text_n_embd": text_C, "n_embd": space})
        ours = to_theirs(clip_names(c), CLIP(c).state_dict())
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items() if not k.endswith("position_ids")}


@pytest.mark.parametrize("name", GPTS)
def test_every_published_gpt2_has_the_names_and_shapes_that_we_read(hf, name):
    """Catches the same for GPT-2."""
    C, n_layer, n_head = GPTS[name]
    with torch.device("meta"):
        theirs = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=C, n_layer=n_layer, n_head=n_head))
        ours = GPT(GPTConfig(50257, 1024, n_layer, n_head, C))
        ours = to_theirs(gpt2_names(n_layer, "", "transformer."), ours.state_dict())
    theirs = {k: v.shape for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    assert {k: v.shape for k, v in ours.items()} == theirs


@pytest.mark.parametrize("name", LMS)
def test_every_published_language_model_has_the_names_and_shapes_that_we_read(hf, name, tmp_path):
    """Catches a field of a published config.json that is refused or not read."""
    c = families.read_config(LMS[name], tmp_path)
    with torch.device("meta"):
        theirs = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(**LMS[name]))
        ours = to_theirs(lm_names(c), GPT(c).state_dict())
    theirs = shapes(theirs.state_dict())
    if c.tied:
        del theirs["lm_head.weight"]
    assert shapes(ours) == theirs


def test_llava_15_has_the_names_and_shapes_that_we_read(hf, tmp_path):
    """Catches the same for the 7 billion weights of LLaVA-1.5, in no memory."""
    text = LMS["Vicuna-7B"] | {"vocab_size": 32064}
    gpt = families.read_config(text, tmp_path)
    vision = clip_of(hf, "ViT-L/14-336").vision_config
    vit = pretrained.read_vit(vision.to_dict(), "clip", tmp_path)
    with torch.device("meta"):
        theirs = hf.LlavaForConditionalGeneration(hf.LlavaConfig(
            vision_config=vision, text_config=hf.AutoConfig.for_model(**text),
            image_token_index=32000))
        c = VLMConfig(32000, vit, gpt, "llava")
        ours = VLM(c)
    assert sum(p.numel() for p in ours.parameters()) > 7e9
    theirs = {pretrained.file_name(name): w for name, w in theirs.state_dict().items()}
    assert shapes(to_theirs(llava_names(c), ours.state_dict())) == shapes(theirs)


@pytest.mark.parametrize("name", SIGLIPS)
def test_every_published_siglip_has_the_names_and_shapes_that_we_read(hf, name, tmp_path):
    """Catches a size that only the smallest has, 384 pixels in patches of 14 among them."""
    C, n_layer, n_head, n_inner, _, _, V = SIGLIPS[name]
    config = siglip_of(hf, name)
    vit = pretrained.read_vit(config.vision_config.to_dict(), "siglip", tmp_path)
    c = CLIPConfig(vit, V, 64, n_layer, n_head, C, C, "gelu_tanh", logit_bias=True,
                   text_n_inner=n_inner, pad_id=1)
    with torch.device("meta"):
        theirs = hf.SiglipModel(config).state_dict()
        ours = CLIP(c).state_dict()
    ours = {name: w.reshape(1) if "logit_" in name else w
            for name, w in to_theirs(clip_names(c), ours).items()}
    assert shapes(ours) == shapes(theirs)


# --- true geometries ---


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Qwen2.5-0.5B", "Qwen3-0.6B"])
@torch.no_grad()
def test_a_language_model_of_true_size_gives_the_same_logits(
    hf, name, agreement, tmp_path, request
):
    """Catches what tiny models hide: 151,936 words, heads wider than C / H; there and back."""
    if name != "SmolLM2-135M":
        request.getfixturevalue("large")
    seen = agreement(f"{name}, read and written again: logits both ways", "transformers",
                     families.CLASSES[LMS[name]["model_type"]], 1e-4)
    torch.manual_seed(0)
    theirs = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(**LMS[name]))
    theirs.float().eval().save_pretrained(tmp_path / "theirs")
    idx = torch.randint(0, LMS[name]["vocab_size"], (1, 128))
    for _ in seen.cases(128):  # a case is a position
        pass
    want = theirs(idx).logits
    del theirs
    state = pretrained.read_lm(tmp_path / "theirs")
    ours = gpt_from(state).eval()
    seen.close(ours(idx), want)
    del ours
    export(state, tmp_path / "ours")
    del state
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    seen.close(again(idx).logits, want)


@torch.no_grad()
def test_siglip_of_true_size_gives_the_same_logits(hf, agreement, tmp_path):
    """Catches 196 patches without a class token, a text of 64 tokens; there and back."""
    name = "SigLIP base-patch16-224"
    seen = agreement(f"{name}, read and written again: logits both ways", "transformers",
                     "SiglipModel", 1e-4)
    torch.manual_seed(0)
    theirs = hf.SiglipModel(siglip_of(hf, name)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    images, idx = torch.randn(5, 3, 224, 224), torch.randint(2, 32000, (20, 64))
    idx = idx.masked_fill(torch.arange(64) >= torch.randint(2, 65, (20, 1)), 1)  # 1 is its pad
    lengths = (idx != 1).sum(1)
    want = theirs(input_ids=idx, pixel_values=half(images)).logits_per_text      # (20, 5)
    del theirs
    for _ in seen.cases(want.numel()):  # a case is a picture with a text
        pass
    state = pretrained.read_vision(tmp_path / "theirs")
    img_z, txt_z, scale, bias = clip_from(state).eval()(images, idx, lengths)
    seen.close(scale * txt_z @ img_z.T + bias, want)
    export(state, tmp_path / "ours")
    again = hf.SiglipModel.from_pretrained(tmp_path / "ours").eval()
    seen.close(again(input_ids=idx, pixel_values=half(images)).logits_per_text, want)


@pytest.mark.parametrize("name", CLIPS)
@torch.no_grad()
def test_a_clip_of_true_size_gives_the_same_logits(hf, name, agreement, tmp_path, request):
    """Catches what tiny models hide, heads of 64 and 77 positions among it; there and back."""
    if name != "ViT-B/32":
        request.getfixturevalue("large")
    seen = agreement(f"CLIP {name}, read and written again: logits both ways", "transformers",
                     "CLIPModel", 1e-4)
    torch.manual_seed(0)
    theirs = hf.CLIPModel(clip_of(hf, name)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    state = pretrained.read_vision(tmp_path / "theirs")
    ours = clip_from(state).eval()
    S = ours.config.vit.image_size
    images, idx = torch.randn(5, 3, S, S), torch.randint(0, 49406, (20, 77))
    lengths = torch.randint(2, 78, (20,))
    idx = idx.masked_fill(torch.arange(77) == lengths[:, None] - 1, 49407)
    idx = idx.masked_fill(torch.arange(77) >= lengths[:, None], 0)
    want = theirs(input_ids=idx, pixel_values=images).logits_per_text            # (20, 5)
    del theirs
    img_z, txt_z, scale = ours(images, idx, lengths)
    for _ in seen.cases(want.numel()):  # a case is a picture with a text
        pass
    seen.close(scale * txt_z @ img_z.T, want)
    export(state, tmp_path / "ours")
    del ours, state
    again = hf.CLIPModel.from_pretrained(tmp_path / "ours").eval()
    seen.close(again(input_ids=idx, pixel_values=images).logits_per_text, want)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large"])  # xl needs 25 GB here
@torch.no_grad()
def test_a_gpt2_of_true_size_gives_the_same_logits(hf, name, agreement, tmp_path, request):
    """Catches a longer context, a larger vocabulary, new rows that move the old logits."""
    if name != "gpt2":
        request.getfixturevalue("large")
    seen = agreement(f"{name}, read and written again: logits both ways", "transformers",
                     "GPT2LMHeadModel", 1e-4)
    torch.manual_seed(0)
    C, n_layer, n_head = GPTS[name]
    theirs = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=C, n_layer=n_layer, n_head=n_head)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs", byte_merges(50000))
    state = pretrained.read_lm(tmp_path / "theirs")
    ours = GPT(GPTConfig(**state["configs"]["model"])).eval()
    ours.load_state_dict(state["model"])
    idx = torch.randint(0, 50257, (1, 256))
    for _ in seen.cases(256):  # a case is a position
        pass
    want = theirs(idx).logits
    del theirs
    got = ours(idx)
    seen.close(got[..., :50257], want)
    assert got.shape[-1] == 50257 + len(SPECIALS) - 1  # GPT-2 has <|endoftext|> itself
    seen.close(got[..., 50257:].mean(-1), got[..., :50257].mean(-1))
    del ours
    export(state, tmp_path / "ours")
    again = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    seen.close(again(idx).logits[..., :50257], want)


def byte_merges(n: int) -> list[str]:
    """n merges of byte pairs, then of what came out, in GPT-2's letters: the right number of them
    is what matters.
    """
    rng, letters = random.Random(0), list(byte_letters().values())
    pieces, merges, known = list(letters), [], set(letters)
    while len(merges) < n:
        a, b = rng.choice(pieces), rng.choice(letters)
        if a + b not in known:
            known.add(a + b)
            pieces.append(a + b)
            merges.append(f"{a} {b}")
    return merges


def write_tokenizer(folder, merges: list[str]) -> None:
    """vocab.json and merges.txt as GPT-2's folder has them."""
    pieces = [*byte_letters().values(), *(m.replace(" ", "") for m in merges)]
    vocab = {p: i for i, p in enumerate([*pieces, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


@torch.no_grad()
def test_positions_at_another_resolution_are_interpolated_alike(hf, agreement, tmp_path):
    """Catches rows for columns, a moved class token, another corner rule."""
    seen = agreement("CLIP at another resolution: features", "transformers",
                     "CLIPModel, interpolate_pos_encoding", 1e-4)
    for rng in seen.cases():
        patch, old, new = 4, rng.randint(1, 6), rng.randint(1, 9)
        vision = hf.CLIPVisionConfig(
            hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=patch * old, patch_size=patch)
        text = hf.CLIPTextConfig(vocab_size=20, hidden_size=16, intermediate_size=64,
                                 num_hidden_layers=1, num_attention_heads=2, eos_token_id=2)
        theirs = hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text)).eval()
        theirs.vision_model.embeddings.position_embedding.weight.normal_()
        theirs.save_pretrained(tmp_path)
        ours = clip_from(pretrained.read_vision(tmp_path, patch * new)).eval()
        images = torch.randn(2, 3, patch * new, patch * new)
        want = theirs.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
        want = getattr(want, "pooler_output", want)
        seen.close(ours.encode_image(images), want / want.norm(dim=-1, keepdim=True))


# --- tokenizers ---


def babble(rng: random.Random) -> str:
    """Words, numbers, signs, white space, letters of many alphabets, emoji, any other character."""
    parts = ["a", "cat's", "The", "they'LL", " ", "  ", "\n", "\t", "3", "12,5", "!", "?!", "...",
             "é", "ü", "Straße", "e\u0301", "日本", "привет", "😀", "👩\u200d🚀", "_", "½", "x²"]
    any_other = [chr(rng.randrange(0x1FFFF)) for _ in range(5)]
    any_other = [x for x in any_other if unicodedata.category(x) not in ("Cs", "Cn")]  # assigned
    return "".join(rng.choice(parts + any_other) + rng.choice(("", " "))
                   for _ in range(rng.randint(0, 30)))


def test_clips_tokenizer_is_transformers_on_the_true_vocabulary(hf, agreement, tmp_path):
    """Catches word ends, case, contractions, single digits, the order of merges: with the real
    vocabulary of 49,408 pieces, which a package brings along.
    """
    seen = agreement("CLIP's tokenizer: ids", "transformers clip-anytorch",
                     "CLIPTokenizer, bpe_simple_vocab_16e6.txt.gz", 0)
    with gzip.open(folder_of("clip") / "bpe_simple_vocab_16e6.txt.gz") as f:
        merges = f.read().decode().split("\n")[1:49152 - 256 - 2 + 1]
    letters = list(byte_letters().values())
    pieces = [*letters, *(x + "</w>" for x in letters), *(m.replace(" ", "") for m in merges),
              "<|startoftext|>", "<|endoftext|>"]
    vocab = {p: i for i, p in enumerate(pieces)}
    assert len(vocab) == 49408
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    ours, theirs = ClipTokenizer.read(tmp_path), hf.CLIPTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "json")
    from_json = ClipTokenizer.read(tmp_path / "json")
    assert (from_json.vocab, from_json.ranks) == (ours.vocab, ours.ranks)
    for rng in seen.cases(1000):
        text = babble(rng)
        idx, lengths = ours.rows([text], 500)
        seen.same(idx[0, :lengths[0]].tolist(), theirs(text)["input_ids"])


def test_our_tokenizer_is_the_same_in_the_published_format(hf, agreement, tmp_path):
    """Catches another split, merges in another order, bytes under other letters."""
    seen = agreement("tokenizer.json of ours: ids and texts", "transformers",
                     "PreTrainedTokenizerFast", 0)
    rng = random.Random(1)
    ours = Tokenizer.train([babble(rng) for _ in range(500)], 600)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_file(ours)))
    theirs = hf.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.convert_tokens_to_ids(list(SPECIALS)) == [ours.special[name] for name in SPECIALS]
    assert read_tokenizer(tmp_path)[0].identity == ours.identity
    for rng in seen.cases(1000):
        text = babble(rng)
        ids = ours.encode(text)
        seen.same(ids, theirs(text)["input_ids"])
        seen.same(ours.decode(ids), theirs.decode(ids, clean_up_tokenization_spaces=False))


def test_gpt2s_tokenizer_is_transformers(hf, agreement, tmp_path):
    """Catches a vocabulary in another order than its merges, and bytes under other letters."""
    seen = agreement("GPT-2's tokenizer: ids", "transformers", "GPT2Tokenizer", 0)
    for rng in seen.cases(100):
        merges = byte_merges(400)[: rng.randint(0, 400)]
        write_tokenizer(tmp_path, merges)
        ours, _ = read_tokenizer(tmp_path)
        theirs = hf.GPT2Tokenizer.from_pretrained(tmp_path)
        for _ in range(10):
            text = babble(rng)
            seen.same(ours.encode(text), theirs(text)["input_ids"])


# --- a whole chatbot ---


def as_list(text: str) -> list[dict]:
    """A message's content as transformers' processors are usually given it."""
    first, *others = text.split("<image>")
    pieces = [{"type": "text", "text": first}] if first.strip() else []
    for part in others:
        pieces += [{"type": "image"}, {"type": "text", "text": part}]
    return pieces


def test_a_chatbots_processor_prepares_what_render_does(hf, agreement, folder, runs, tmp_path):
    """Catches a template with other spaces, a picture's tokens that do not come to N, another mean:
    the dialogues of the data up to one of their questions. Pictures have the model's own size;
    others are cut along another rule.
    """
    seen = agreement("chatbot, exported: ids of dialogues, pictures", "transformers",
                     "LlavaProcessor with our chat template", 1e-5)
    state = checkpoint.load(runs / "align", ("align",))
    config, tokenizer = state["configs"]["model"], Tokenizer.from_text(state["tokenizer"])
    model = VLM(VLMConfig.from_dict(config | {"projector": "llava"}))
    export({**state, "configs": {"model": asdict(model.config)}, "model": model.state_dict()},
           tmp_path)
    theirs = hf.AutoProcessor.from_pretrained(tmp_path)
    records = [r for r in load_records(folder, "val", need=("conversations",)) if r.get("image")]
    pictures = Pictures(folder, model.config.vit.image_size)
    for rng in seen.cases():
        record = rng.choice(records)
        turns = [{"from": "system", "value": " Be brief. "}] * rng.randint(0, 1)
        turns += record["conversations"][:2 * rng.randint(1, 3) - 1]
        ids, _ = render(turns, tokenizer, model.config.vit.n_tokens)
        role = {"system": "system", "human": "user", "gpt": "assistant"}
        messages = [{"role": role[t["from"]], "content": rng.choice((str, as_list))(t["value"])}
                    for t in turns]
        text = theirs.apply_chat_template(messages, tokenize=False)
        image = Image.fromarray(pictures.pixels([record["image"]])[0])
        out = theirs(text=[text], images=[image], return_tensors="pt")
        seen.same(ids, out.input_ids[0].tolist())
        seen.close(pictures.get([record["image"]]), out.pixel_values)


def test_a_trained_chatbot_answers_the_same_in_transformers(hf, agreement, folder, runs, tmp_path):
    """Catches an export that only random weights survive: stages 3a and 3b with --projector llava,
    then greedy answers, token by token.
    """
    seen = agreement("chatbot, exported: greedy answers", "transformers",
                     "LlavaForConditionalGeneration.generate", 0)
    small = {"data": str(folder), "batch_size": 8, "eval_every": 30, "steps": 30, "seed": 3}
    train_align.main(train_align.Config(
        clip=f"{runs}/clip", lm=f"{runs}/lm", out=f"{tmp_path}/align", projector="llava", **small))
    train_sft.main(train_sft.Config(init=f"{tmp_path}/align", out=f"{tmp_path}/sft", **small))
    state = checkpoint.load(tmp_path / "sft", ("sft",))
    export(state, tmp_path / "hf")
    ours, tokenizer = vlm_from(state).eval(), Tokenizer.from_text(state["tokenizer"])
    theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    records = load_records(folder, "val", need=("conversations",))
    pictures = Pictures(folder, ours.config.vit.image_size)
    for rng in seen.cases():
        record = rng.choice([r for r in records if r.get("image")])
        question = rng.choice(["What is there?", "How many?", "Is there a red circle?"])
        prompt = prompt_of(question, tokenizer, ours.config.vit.n_tokens)
        images = pictures.get([record["image"]])
        said = generate(ours, images, [prompt], max_new_tokens=8, stop=tokenizer.end)
        out = theirs.generate(
            input_ids=torch.tensor([prompt]), pixel_values=images, max_new_tokens=8,
            do_sample=False)
        new = out[0, len(prompt):].tolist()
        seen.same(said[0], new[:new.index(tokenizer.end)] if tokenizer.end in new else new)


def test_published_backbones_of_true_size_go_through_every_stage(
    hf, agreement, folder, tmp_path, monkeypatch, large, capsys
):
    """Catches a stage that true sizes break: SmolLM2-135M and SigLIP base-patch16-224, aligned,
    tuned and taught preferences with LoRA, talked to, exported, and asked again in transformers.
    """
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "results")
    backbones = importlib.import_module("backbones")
    seen = agreement("SmolLM2-135M with SigLIP, trained here, exported: greedy answers",
                     "transformers", "LlavaForConditionalGeneration.generate", 0)
    tokenizer = backbones.write_backbones(tmp_path, "smollm2-135m")
    data = tmp_path / "data"
    backbones.write_data(str(folder), data, tokenizer, 196, 12)
    small = {"data": str(data), "batch_size": 2, "eval_every": 2, "steps": 2, "muon_lr": 0.0}
    sft = {"n_texts": 0, "grad_accum": 1, "lora": 8}
    train_align.main(train_align.Config(
        vision=f"{tmp_path}/vision", llm=f"{tmp_path}/text", out=f"{tmp_path}/align",
        projector="llava", **small))
    train_sft.main(train_sft.Config(
        init=f"{tmp_path}/align", out=f"{tmp_path}/sft", **sft, **small))
    train_dpo.main(train_dpo.Config(
        init=f"{tmp_path}/sft", out=f"{tmp_path}/dpo", split="pairs", val_split="pairs_val",
        prompts="", lora=8, **small))
    chat.main(chat.Config(
        f"{tmp_path}/dpo", str(data / "0.png"), "What is this?", max_new_tokens=3))
    state = checkpoint.load(tmp_path / "dpo", ("dpo",))
    tokenizer = checkpoint.tokenizer_of(state)
    assert tokenizer.template_name == "chatml"
    export(state, tmp_path / "hf")
    ours = vlm_from(state).eval()
    theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    processor = hf.AutoProcessor.from_pretrained(tmp_path / "hf")
    for question in ("What is there?", "How many?", "Is it red?", "Where is it?", "Why?"):
        images = torch.randn(1, 3, 224, 224)
        prompt = prompt_of(question, tokenizer, 196)
        text = processor.apply_chat_template(
            [{"role": "user", "content": f"<image>\n{question}"}], tokenize=False)
        picture = Image.new("RGB", (224, 224))
        seen.same(prompt, processor(text=[text], images=[picture]).input_ids[0])
        said = generate(ours, images, [prompt], max_new_tokens=20, stop=-1)
        out = theirs.generate(
            input_ids=torch.tensor([prompt]), pixel_values=half(images), max_new_tokens=20,
            do_sample=False, eos_token_id=None)
        for ours_id, theirs_id in zip(said[0], out[0, len(prompt):].tolist(), strict=True):
            [_] = seen.cases(1)  # a case is a token
            seen.same(ours_id, theirs_id)
