"""Models beside transformers' and openai/CLIP's: rows 5, 6, 7 and 10 of the list.

Weights travel through minivlm's own readers and writers, so that what is compared is what a user
gets: transformers writes a folder of random weights, pretrained.py reads it; export.py writes one,
transformers reads it.
"""

import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minivlm.cache import Decoder, KVCache
from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.losses import siglip_loss
from minivlm.pretrained.export import export
from minivlm.pretrained.families import CLASSES, PARTS
from minivlm.pretrained.weight_names import clip_names, llava_names, lm_names, to_theirs
from minivlm.pretrained.weights import read_lm, read_vision
from minivlm.tokenizer import Tokenizer
from minivlm.vit import MEAN, STD, ViTConfig
from minivlm.vlm import VLM, VLMConfig
from parity.peers import one_file, whole

BYTES = Tokenizer({bytes([i]): i for i in range(256)})


@pytest.fixture(scope="module")
def hf():
    """transformers, without its warnings about sizes."""
    peer = whole("transformers")
    whole("safetensors")
    peer.logging.set_verbosity_error()
    peer.logging.disable_progress_bar()
    return peer


def stirred(model: nn.Module) -> nn.Module:
    """No bias 0, no norm 1: a tensor in the wrong place shows."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def random_clip(rng: random.Random) -> CLIPConfig:
    heads, text_heads = rng.choice((1, 2, 4)), rng.choice((1, 2, 4))
    patch = rng.choice((4, 8))
    vit = ViTConfig(patch * rng.randint(1, 4), patch, rng.randint(2, 3), heads, 8 * heads,
                    rng.choice(("quick_gelu", "gelu")))
    return CLIPConfig(vit, rng.randint(260, 300), rng.randint(6, 20), rng.randint(1, 3), text_heads,
                      8 * text_heads, rng.choice((8, 24)), rng.choice(("quick_gelu", "gelu")))


def random_gpt(
    rng: random.Random, family: str = "gpt2", vocab_size: int = 0, block_size: int = 0
) -> GPTConfig:
    heads = rng.choice((1, 2, 4))
    c = GPTConfig(vocab_size or rng.randint(5, 60), block_size or rng.randint(4, 24),
                  rng.randint(1, 3), heads, 8 * heads)
    if family == "gpt2":
        return c
    scaling = {"factor": rng.uniform(2, 8), "low": 1.0, "high": 4.0, "original": rng.randint(4, 24)}
    return replace(
        c, norm="rms", norm_eps=rng.choice((1e-5, 1e-6)), act="swiglu", n_inner=rng.randint(5, 40),
        n_kv_head=rng.choice([n for n in (1, 2, 4) if heads % n == 0]), learned_positions=False,
        # transformers' Llama and Qwen2 refuse a width that the heads do not divide
        head_dim=rng.choice((8, 6, 16)) if family == "qwen3" else 8, tied=rng.random() < 0.5,
        rotary_base=rng.choice((100.0, 1e4)), rotary_scaling=rng.choice((None, scaling)),
        **PARTS[family])


def grads_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def compare_grads(seen, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Every gradient of ours, brought into their layout, beside theirs; one that is less than a
    thousandth of the largest is measured against that.
    """
    least = 1e-3 * max(float(g.abs().max()) for g in theirs.values())
    for name, grad in ours.items():
        seen.close(grad, theirs[name], least)


def test_clip_is_transformers_clip(hf, agreement, tmp_path):
    """Catches a transposed map, query for key, a norm left out, another GELU or text token."""
    seen = agreement("CLIP: features, logits, all gradients", "transformers", "CLIPModel", 1e-4)
    for rng in seen.cases():
        c = random_clip(rng)
        ours = stirred(CLIP(c))
        end = c.vocab_size - 1
        state = {"stage": "clip", "configs": {"model": asdict(c)}, "model": ours.state_dict()}
        export(state, tmp_path)
        theirs = hf.CLIPModel.from_pretrained(tmp_path).eval()
        B, T = 3, c.text_block_size
        lengths = torch.tensor([rng.randint(2, T) for _ in range(B)])
        idx = torch.randint(0, end, (B, T)).masked_fill(
            torch.arange(T) >= lengths[:, None] - 1, end)
        images = torch.randn(B, 3, c.vit.image_size, c.vit.image_size)
        img_z, txt_z, scale = ours(images, idx, lengths)
        out = theirs(input_ids=idx, pixel_values=images)
        seen.close(img_z, out.image_embeds)
        seen.close(txt_z, out.text_embeds)
        logits = scale * img_z @ txt_z.T
        seen.close(logits, out.logits_per_image)
        weight = torch.randn(B, B)
        mine = grads_of(ours, (logits * weight).sum())
        yours = grads_of(theirs, (out.logits_per_image * weight).sum())
        compare_grads(seen, to_theirs(clip_names(c), mine), yours)


def test_clip_is_openais(agreement):
    """Catches the same beside the code of the paper, whose towers have heads of 64."""
    peer = one_file("clip", "model.py")
    seen = agreement("CLIP: features, all gradients", "clip-anytorch", "clip/model.py: CLIP", 1e-4)
    for rng in seen.cases():
        heads, text_heads, patch = rng.choice((1, 2)), rng.choice((1, 2, 4)), rng.choice((4, 8))
        vit = ViTConfig(patch * rng.randint(1, 3), patch, rng.randint(2, 3), heads, 64 * heads)
        c = CLIPConfig(vit, rng.randint(20, 60), rng.randint(4, 12), rng.randint(1, 2), text_heads,
                       16 * text_heads, rng.choice((8, 24)))
        ours = stirred(CLIP(c))
        theirs = peer.CLIP(
            c.n_embd, vit.image_size, vit.n_layer, vit.n_embd, patch, c.text_block_size,
            c.vocab_size, c.text_n_embd, text_heads, c.text_n_layer).eval()
        weights = openai_names(ours.state_dict())
        theirs.load_state_dict(weights)
        lengths = torch.tensor([rng.randint(1, c.text_block_size) for _ in range(3)])
        end = c.vocab_size - 1
        idx = torch.randint(0, end, (3, c.text_block_size)).masked_fill(
            torch.arange(c.text_block_size) >= lengths[:, None] - 1, end)
        images = torch.randn(3, 3, vit.image_size, vit.image_size)
        img_z, txt_z, _ = ours(images, idx, lengths)
        per_image, _ = theirs(images, idx)
        seen.close(ours.logit_scale * img_z @ txt_z.T, per_image)
        seen.close(nn.functional.normalize(theirs.encode_text(idx), dim=-1), txt_z)
        weight = torch.randn(3, 3)
        mine = grads_of(ours, (ours.logit_scale * img_z @ txt_z.T * weight).sum())
        yours = grads_of(theirs, (per_image * weight).sum())
        compare_grads(seen, openai_names(mine), yours)


def openai_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, or their gradients, under the names of openai/CLIP."""
    out = {}
    for name, x in ours.items():
        name = name.removeprefix("text.").replace("vit.", "visual.")
        for a, b in (("visual.cls", "visual.class_embedding"), ("norm_pre", "ln_pre"),
                     ("visual.pos", "visual.positional_embedding"), ("norm_post", "ln_post"),
                     ("visual.patch", "visual.conv1"), ("wte", "token_embedding"),
                     ("wpe.weight", "positional_embedding"), ("log_scale", "logit_scale"),
                     ("blocks.", "transformer.resblocks."), ("norm1", "ln_1"), ("norm2", "ln_2"),
                     ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
                     ("mlp.0", "mlp.c_fc"), ("mlp.2", "mlp.c_proj")):
            name = name.replace(a, b)
        if name.startswith("norm."):
            name = name.replace("norm", "ln_final")
        if name in ("img_proj.weight", "txt_proj.weight"):
            name = {"img_proj.weight": "visual.proj", "txt_proj.weight": "text_projection"}[name]
            x = x.T
        out[name] = x
    return out


def test_a_vlm_reads_what_llava_reads(hf, agreement, tmp_path):
    """Catches a block too many, the class token, or a norm on what goes to the projector."""
    seen = agreement("ViT features for a VLM", "transformers",
                     "CLIPVisionModel.hidden_states[-2][:, 1:]", 1e-5)
    for rng in seen.cases():
        c = random_clip(rng)
        ours = stirred(CLIP(c))
        export({"stage": "clip", "configs": {"model": asdict(c)}, "model": ours.state_dict()},
               tmp_path)
        theirs = hf.CLIPModel.from_pretrained(tmp_path).eval().vision_model
        images = torch.randn(2, 3, c.vit.image_size, c.vit.image_size)
        out = theirs(pixel_values=images, output_hidden_states=True)
        seen.close(ours.vit.features(images), out.hidden_states[-2][:, 1:])
        seen.close(ours.vit.pool(images), out.pooler_output)
        assert ours.vit.features(images).shape[1] == (c.vit.image_size // c.vit.patch_size) ** 2


def random_siglip(rng: random.Random) -> CLIPConfig:
    heads, text_heads, patch = rng.choice((1, 2, 4)), rng.choice((1, 2, 4)), rng.choice((4, 8))
    size = patch * rng.randint(1, 4) + rng.choice((0, 0, 1, 3))  # 384 is no multiple of 14
    vit = ViTConfig(size, patch, rng.randint(2, 3), heads, 8 * heads, "gelu_tanh", kind="siglip",
                    n_inner=rng.randint(5, 40), norm_eps=1e-6)
    V = rng.randint(20, 60)
    return CLIPConfig(vit, V, rng.randint(6, 20), rng.randint(1, 3), text_heads, 8 * text_heads,
                      vit.n_embd, "gelu_tanh", logit_bias=True, text_n_inner=rng.randint(5, 40),
                      pad_id=rng.randint(0, V - 1))


def half(images: Tensor) -> Tensor:
    """Pictures that are normalized as CLIP's, normalized as SigLIP's."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    return (images * std + mean - 0.5) / 0.5


def test_siglip_is_transformers_siglip(hf, agreement, tmp_path):
    """Catches a causal text tower, pads left out, a feature at the last word, a pool without its
    residual, a norm behind it, another eps, CLIP's pixels; and the loss of the paper.
    """
    seen = agreement("SigLIP: features, logits, loss, all gradients", "transformers", "SiglipModel",
                     1e-4)
    for rng in seen.cases():
        c = random_siglip(rng)
        ours = stirred(CLIP(c))
        state = {"stage": "clip", "configs": {"model": asdict(c)}, "model": ours.state_dict()}
        export(state, tmp_path)
        theirs = hf.SiglipModel.from_pretrained(tmp_path).eval()
        theirs.save_pretrained(tmp_path / "theirs")
        again = read_vision(tmp_path / "theirs")
        assert again["configs"]["model"] == asdict(c)
        assert all(torch.equal(x, again["model"][k]) for k, x in ours.state_dict().items())
        B, T = 3, c.text_block_size
        lengths = torch.tensor([rng.randint(1, T) for _ in range(B)])
        idx = torch.randint(0, c.vocab_size, (B, int(lengths.max())))
        full = nn.functional.pad(idx, (0, T - idx.shape[1]))
        full = full.masked_fill(torch.arange(T) >= lengths[:, None], c.pad_id)
        images = torch.randn(B, 3, c.vit.image_size, c.vit.image_size)
        img_z, txt_z, scale, bias = ours(images, idx, lengths)
        out = theirs(input_ids=full, pixel_values=half(images), return_loss=True)
        seen.close(img_z, out.image_embeds)
        seen.close(txt_z, out.text_embeds)
        seen.close(scale * img_z @ txt_z.T + bias, out.logits_per_image)
        loss = siglip_loss(img_z, txt_z, scale, bias)
        seen.close(loss, out.loss)
        seen.close(ours.vit.features(images), theirs.vision_model(
            pixel_values=half(images), output_hidden_states=True).hidden_states[-2])
        mine = to_theirs(clip_names(c), grads_of(ours, loss))
        yours = grads_of(theirs, out.loss)
        compare_grads(seen, {k: x.reshape(yours[k].shape) for k, x in mine.items()}, yours)


LM = {"gpt2": "GPT2LMHeadModel"} | CLASSES


@pytest.mark.parametrize("family", LM)
def test_every_language_model_is_transformers(hf, agreement, tmp_path, family):
    """Catches GELU instead of its approximation, a head that is not tied, a matrix that is
    transposed, targets of -100 that count; queries with the keys of another group, a norm of
    another eps, a rotation of neighbors, a bias that is left out.
    """
    seen = agreement(f"{family}: logits, loss, all gradients", "transformers", LM[family], 1e-4)
    for rng in seen.cases():
        ours, theirs, c = both_gpts(hf, rng, tmp_path, family)
        idx = torch.randint(0, c.vocab_size, (2, rng.randint(2, c.block_size)))
        labels = idx.masked_fill(torch.rand(idx.shape) < 0.3, -100)
        labels[:, -1] = idx[:, -1]
        targets = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)  # the peer shifts inside
        logits, out = ours(idx), theirs(input_ids=idx, labels=labels)
        seen.close(logits, out.logits)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        seen.close(loss, out.loss)
        mine = to_theirs(lm_names(c), grads_of(ours, loss))
        compare_grads(seen, mine, grads_of(theirs, out.loss))


def both_gpts(
    hf, rng: random.Random, folder: Path, family: str
) -> tuple[GPT, nn.Module, GPTConfig]:
    """A GPT with random weights, and the same one as transformers reads it.

    transformers saves this model again, and `read_lm` must find the same weights in its files.
    """
    c = random_gpt(rng, family)
    ours = stirred(GPT(c))
    export({"stage": "lm", "configs": {"model": asdict(c)}, "model": ours.state_dict()}, folder)
    theirs = getattr(hf, LM[family]).from_pretrained(folder).eval()
    if family != "gpt2":  # which also needs a tokenizer
        theirs.save_pretrained(folder / "theirs")
        again = read_lm(folder / "theirs")
        assert again["configs"]["model"] == asdict(c)
        assert all(torch.equal(value, again["model"][name])
                   for name, value in ours.state_dict().items())
    return ours, theirs, c


@pytest.mark.parametrize("family", LM)
def test_a_cache_is_transformers_with_left_padding(hf, agreement, tmp_path, family):
    """Catches positions counted over pads, and keys of another row: ours stand on the right, the
    peer's on the left; both then read on, one token at a time.
    """
    seen = agreement(f"{family} with a KV cache, ragged rows: next-token logits", "transformers",
                     f"{LM[family]}, left padding", 1e-5)
    with torch.no_grad():
        for rng in seen.cases():
            ours, theirs, c = both_gpts(hf, rng, tmp_path, family)
            longest = rng.randint(2, c.block_size - 1)
            lengths = [longest, rng.randint(1, longest)]
            rows = [torch.randint(0, c.vocab_size, (n,)).tolist() for n in lengths]
            right = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
            left = torch.tensor([[0] * (longest - len(r)) + r for r in rows])
            mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
            cache = KVCache(c.n_layer, 2, c.block_size)
            at = torch.tensor(lengths)
            mine = ours(right, cache=cache)[torch.arange(2), at - 1]
            decoder = Decoder(ours, cache, at)
            out = theirs(input_ids=left, attention_mask=mask, use_cache=True,
                         position_ids=(mask.cumsum(1) - 1).clamp(min=0))
            seen.close(mine, out.logits[:, -1])
            for step in range(c.block_size - longest):
                new = torch.randint(0, c.vocab_size, (2,))
                mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
                out = theirs(input_ids=new[:, None], attention_mask=mask,
                             position_ids=(at + step)[:, None],
                             past_key_values=out.past_key_values)
                seen.close(decoder(new, at + step), out.logits[:, -1])


@pytest.mark.parametrize("family", LM)
def test_a_vlm_is_transformers_llava(hf, agreement, tmp_path, family):
    """Catches features in another order or row, another layer, a norm too many, labels that slip:
    rows with none, one and two pictures, padded on the right; CLIP's tower, and SigLIP's.
    """
    seen = agreement(f"VLM over {family}: logits, loss, all gradients", "transformers",
                     "LlavaForConditionalGeneration", 1e-4)
    for rng in seen.cases():
        vit = rng.choice((random_clip, random_siglip))(rng).vit
        if rng.random() < 0.5 and vit.kind == "siglip":  # as published with Qwen
            vit = replace(vit, pool_head=False)
        N, image = vit.n_tokens, 7
        texts = [[[rng.randint(0, 6) for _ in range(rng.randint(1, 4))] for _ in range(n + 1)]
                 for n in rng.sample((0, 1, 2), 3)]
        rows = [[t for k, text in enumerate(row) for t in [image] * N * (k > 0) + text]
                for row in texts]
        T = max(map(len, rows))
        c = VLMConfig(image, vit, random_gpt(rng, family, 8, T + rng.randint(0, 3)), "llava")
        ours = stirred(VLM(c))
        export({"stage": "align", "configs": {"model": asdict(c)}, "model": ours.state_dict()},
               tmp_path)
        theirs = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
        idx = torch.tensor([row + [0] * (T - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in rows])
        labels = idx.masked_fill((idx == image) | (mask == 0), -100)
        targets = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
        n_images = sum(len(row) - 1 for row in texts)
        images = torch.randn(n_images, 3, vit.image_size, vit.image_size)
        logits = ours(idx, images)
        seen_images = half(images) if vit.kind == "siglip" else images
        out = theirs(input_ids=idx, pixel_values=seen_images, attention_mask=mask, labels=labels)
        real = mask.bool()
        seen.close(logits[real], out.logits[real])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        seen.close(loss, out.loss)
        mine = grads_of(ours, loss)
        yours = {peer_name(k): g for k, g in grads_of(theirs, out.loss).items()}
        if c.gpt.tied:  # one tensor of ours and two of theirs: its gradient is the sum
            [wte] = [pair.theirs[0] for pair in llava_names(c) if pair.ours == "gpt.wte.weight"]
            yours[wte] = yours[wte] + yours["language_model.lm_head.weight"]
        names = [pair for pair in llava_names(c) if pair.ours in mine]
        assert len(names) == len(mine) > 20
        compare_grads(seen, to_theirs(names, mine), yours)


def peer_name(name: str) -> str:
    """In memory transformers keeps other names than in its files."""
    name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
    return name.replace("lm_head", "language_model.lm_head")
