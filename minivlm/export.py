"""Our weights in huggingface/transformers' layout, for other programs to load.

    runs/lm                        GPT2LMHeadModel
    runs/clip                      CLIPModel
    runs/align, sft, ppo, dpo      LlavaForConditionalGeneration over CLIPVisionModel and GPT2Model

Each folder gets config.json, model.safetensors and the tokenizer as tokenizer.json, what sees also
how pictures are prepared, and a chatbot its chat template, for AutoProcessor.
LlavaForConditionalGeneration has no norm behind its projector and no other way to say how large
image tokens are, so only a VLM that was made without one, with train_align.py --projector llava,
fits into it. Needs the safetensors package: pip install 'minivlm[pretrained]'. The way back is
pretrained.py.

Run: python -m minivlm.export --run runs/lm --out exported
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minivlm import checkpoint, run
from minivlm.clip import CLIPConfig
from minivlm.gpt import GPTConfig
from minivlm.images import MEAN, STD
from minivlm.pretrained import OURS, safetensors
from minivlm.tokenizer import PATTERN, SPECIALS, Tokenizer, byte_letters
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig
from minivlm.weight_names import clip_names, gpt2_names, llava_names, to_theirs


# conversation.render for messages {"role": "user" | "assistant" | "system", "content": text}, with
# "<image>" where a picture belongs; transformers' processor makes N tokens of each <|image|>
TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == "assistant" %}{{ message.content | trim }}<|end|>
{%- else %}<|{{ message.role }}|>
{%- for part in message.content.split("<image>") %}
{%- if not loop.first %}<|image|>{% endif %}{{ part | trim }}
{%- endfor %}
{%- if message.role == "user" %}<|assistant|>{% endif %}
{%- endif %}
{%- endfor %}"""


@dataclass
class Config:
    """Options; the comments are the help texts."""

    run: str = "runs/sft"  # which run to export: lm, clip, align, sft, ppo or dpo
    out: str = "exported"  # folder to write


def export(state: dict, folder: Path) -> str:
    """Write a checkpoint's model and tokenizer in the published layout.

    Args:
        state: as `checkpoint.load` or `pretrained.read_clip` gives it; without a tokenizer none is
            written, and a CLIP's texts end with the largest of their ids.

    Returns:
        the name of the class that loads it.

    Raises:
        ValueError: if that class lacks what the model has, or safetensors is not installed.
    """
    stage, model = state["stage"], state["configs"]["model"]
    tokenizer = Tokenizer.from_text(state["tokenizer"]) if "tokenizer" in state else None
    if stage == "lm":
        c = GPTConfig(**model)
        name, config = "GPT2LMHeadModel", gpt2_config(c)
        weights = to_theirs(gpt2_names(c.n_layer, "", "transformer."), state["model"])
    elif stage == "clip":
        c = CLIPConfig.from_dict(model)
        name, config = "CLIPModel", clip_config(c, tokenizer)
        weights = to_theirs(clip_names(c), state["model"])
    else:
        c, vlm = VLMConfig.from_dict(model), VLM.from_checkpoint(state)
        name, config = "LlavaForConditionalGeneration", llava_config(c)
        weights = to_theirs(llava_names(c), vlm.state_dict())
    write(folder, config | {"architectures": [name], "dtype": "float32"}, weights, tokenizer)
    if stage != "lm":
        size = c.vit.image_size
        picture = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True,
                   "do_resize": True, "size": {"shortest_edge": size}, "resample": 3,
                   "do_center_crop": True, "crop_size": {"height": size, "width": size},
                   "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                   "image_mean": list(MEAN), "image_std": list(STD)}
        write_json(folder / "preprocessor_config.json", picture)
    if name.startswith("Llava"):
        write_json(folder / "processor_config.json", {
            "processor_class": "LlavaProcessor", "patch_size": c.vit.patch_size,
            "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
            "image_token": SPECIALS[2]})
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return name


def gpt2_config(c: GPTConfig) -> dict:
    """GPT2Config of a GPT."""
    return {"model_type": "gpt2", "vocab_size": c.vocab_size, "n_positions": c.block_size,
            "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head, "n_inner": None,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "embd_pdrop": c.dropout, "attn_pdrop": c.dropout, "resid_pdrop": c.dropout,
            "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True}


def vit_config(c: ViTConfig) -> dict:
    """CLIPVisionConfig of a ViT."""
    return {"model_type": "clip_vision_model", "hidden_size": c.n_embd, "hidden_act": c.act,
            "intermediate_size": 4 * c.n_embd, "num_hidden_layers": c.n_layer,
            "num_attention_heads": c.n_head, "image_size": c.image_size,
            "patch_size": c.patch_size, "layer_norm_eps": 1e-5}


def clip_config(c: CLIPConfig, tokenizer: Tokenizer | None) -> dict:
    """CLIPConfig of a CLIP: the text's feature is taken at the first end token."""
    end = 2 if tokenizer is None else tokenizer.endoftext  # 2 is transformers' sign for the largest
    text = {"model_type": "clip_text_model", "vocab_size": c.vocab_size, "hidden_act": c.act,
            "hidden_size": c.text_n_embd, "intermediate_size": 4 * c.text_n_embd,
            "num_hidden_layers": c.text_n_layer, "num_attention_heads": c.text_n_head,
            "max_position_embeddings": c.text_block_size, "layer_norm_eps": 1e-5,
            "bos_token_id": None, "pad_token_id": None, "eos_token_id": end}
    return {"model_type": "clip", "projection_dim": c.n_embd, "text_config": text,
            "vision_config": vit_config(c.vit)}


def llava_config(c: VLMConfig) -> dict:
    """LlavaConfig of a VLM.

    Raises:
        ValueError: if its projector has a norm or one map only, or prompts see both ways.
    """
    if c.projector != "llava":
        raise ValueError(
            f"LlavaForConditionalGeneration has two maps and no norm in its projector, this model "
            f"has the projector {c.projector!r}; train_align.py --projector llava makes one that "
            "fits")
    if c.prefix_lm:
        raise ValueError("LlavaForConditionalGeneration reads prompts causally, this model does "
                         "not (prefix_lm)")
    text = gpt2_config(c.gpt) | {"tie_word_embeddings": False}
    return {"model_type": "llava", "vision_config": vit_config(c.vit), "text_config": text,
            "image_token_index": c.image_id, "image_seq_length": c.vit.n_tokens,
            "vision_feature_layer": c.vit.feature_layer, "projector_hidden_act": "gelu",
            "vision_feature_select_strategy": "default", "multimodal_projector_bias": True,
            "tie_word_embeddings": False}


def write(
    folder: Path, config: dict, weights: dict[str, Tensor], tokenizer: Tokenizer | None
) -> None:
    """Write config, weights and tokenizer into a folder, which may be there already."""
    writer = safetensors()
    folder.mkdir(parents=True, exist_ok=True)
    writer.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    if tokenizer is not None:
        write_json(folder / "tokenizer.json", tokenizer_file(tokenizer))
        write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIALS[0],
            "pad_token": SPECIALS[1]})


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_file(tokenizer: Tokenizer) -> dict:
    """The content of tokenizer.json, huggingface/tokenizers' format."""
    letters = byte_letters()
    names = {token: "".join(letters[b] for b in token) for token in tokenizer.ranks}
    vocab = {names[token]: rank for token, rank in tokenizer.ranks.items()}
    pattern = OURS if tokenizer.pattern == PATTERN else tokenizer.pattern
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False}
    to_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    special = [{"id": len(vocab) + i, "content": name, "special": True, "normalized": False,
                "single_word": False, "lstrip": False, "rstrip": False}
               for i, name in enumerate(SPECIALS)]
    return {"version": "1.0", "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_letters]},
            "post_processor": None, "decoder": to_letters,
            "model": {"type": "BPE", "vocab": vocab, "fuse_unk": False, "byte_fallback": False,
                      "merges": [[names[a], names[b]] for a, b in merges_of(tokenizer.ranks)]}}


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The joins that made the tokens, in order: each token falls into two earlier ones.

    >>> merges_of({b"a": 0, b"b": 1, b"ab": 2, b"aba": 3})
    [(b'a', b'b'), (b'ab', b'a')]
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda kv: kv[1]):
        pieces = [token[i:i + 1] for i in range(len(token))]
        while len(pieces) > 2:  # join as the tokenizer would, until two pieces are left
            at = min(range(len(pieces) - 1),
                     key=lambda i: ranks.get(pieces[i] + pieces[i + 1], rank))
            pieces[at:at + 2] = [pieces[at] + pieces[at + 1]]
        if len(pieces) == 2:
            merges.append((pieces[0], pieces[1]))
    return merges


def main(cfg: Config) -> None:
    """Export a run, say what loads it."""
    state = checkpoint.load(cfg.run, ("lm", "clip", "align", "sft", "ppo", "dpo"))
    name = export(state, Path(cfg.out))
    print(f"{cfg.out}: transformers.{name}.from_pretrained({cfg.out!r}) loads it")


if __name__ == "__main__":
    run.cli(main, Config)
