"""Our weights in huggingface/transformers' layout, for other programs to load.

    runs/lm                        GPT2LMHeadModel
    runs/clip                      CLIPModel
    runs/align, sft, ppo, dpo      LlavaForConditionalGeneration over CLIPVisionModel and GPT2Model

Each folder gets config.json, model.safetensors and the tokenizer as tokenizer.json, what sees also
how pictures are prepared, and a chatbot its chat template, for AutoProcessor.
LlavaForConditionalGeneration has no norm behind its projector and no other way to say how large
image tokens are, so only a VLM that was made without one, with train_align.py --projector llava,
fits into it. Needs the safetensors package. The way back is pretrained.py.

Run: python -m minivlm.export --run runs/lm --out exported
"""

import json
from minivlm.loading.models import vlm_from
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minivlm.clip import CLIPConfig
from minivlm.gpt import GPTConfig
from minivlm.loading.images import MEAN, STD
from minivlm.pretrained.tokenizers import pre_tokenizer
from minivlm.pretrained.weight_names import clip_names, gpt2_names, llava_names, to_theirs
from minivlm.pretrained.weights import safetensors
from minivlm.running import checkpoint, options
from minivlm.tokenizer import SPECIALS, Tokenizer, byte_letters
from minivlm.vit import ViTConfig
from minivlm.vlm import VLMConfig

# conversation.render for messages {"role": "user" | "assistant" | "system", "content": a text or a
# list of {"type": "image"} and {"type": "text", "text": ...}}, with "<image>" in a text where a
# picture belongs; transformers' processor makes N tokens of each <|image|>
TEMPLATE = """\
{%- macro read(text) %}
{%- for part in text.split("<image>") %}
{%- if not loop.first %}<|image|>{% endif %}{{ part | trim }}
{%- endfor %}
{%- endmacro %}
{%- for message in messages %}
{%- if message.role != "assistant" %}<|{{ message.role }}|>{% endif %}
{%- if message.content is string %}{{ read(message.content) }}
{%- else %}
{%- for piece in message.content %}
{%- if piece.type == "image" %}<|image|>{% else %}{{ read(piece.text) }}{% endif %}
{%- endfor %}
{%- endif %}
{%- if message.role == "assistant" %}<|end|>{% endif %}
{%- if message.role == "user" %}<|assistant|>{% endif %}
{%- endfor %}"""


@dataclass
class Config:
    """Options; the comments are the help texts."""

    run: str = "runs/lm"  # which run to export: lm, clip, align, sft, ppo or dpo
    out: str = "exported"  # folder to write


def export(state: dict, folder: Path) -> str:
    """Write a checkpoint's model and tokenizer in the published layout.

    Args:
        state: as `checkpoint.load` or `pretrained.read_clip` gives it; without a tokenizer none is
            written, and a CLIP's texts end with the largest of their ids.
        folder: made if it is not there; an earlier export in it is replaced.

    Returns:
        the name of the class that loads it.

    Raises:
        ValueError: if that class lacks what the model has, or safetensors is not installed.
        OSError: if the folder cannot be written.
    """
    stage, model = state["stage"], state["configs"]["model"]
    tokenizer = Tokenizer.from_text(state["tokenizer"]) if "tokenizer" in state else None
    if stage == "lm":
        c = GPTConfig(**model)
        name, config, files = "GPT2LMHeadModel", gpt2_config(c), {}
        weights = to_theirs(gpt2_names(c.n_layer, "", "transformer."), state["model"])
    elif stage == "clip":
        c = CLIPConfig.from_dict(model)
        name, config, files = "CLIPModel", clip_config(c, tokenizer), picture_files(c.vit)
        weights = to_theirs(clip_names(c), state["model"])
    else:
        c, vlm = VLMConfig.from_dict(model), vlm_from(state)
        name, config = "LlavaForConditionalGeneration", llava_config(c)
        files = picture_files(c.vit) | chat_files(c)
        weights = to_theirs(llava_names(c), vlm.state_dict())
    if tokenizer is not None:
        files |= tokenizer_files(tokenizer, tokenizer.stop(stage))
    # last, so that a folder that was only half written has none and is refused
    files["config.json"] = config | {"architectures": [name], "dtype": "float32"}
    write(folder, weights, files)
    return name


def write(folder: Path, weights: dict[str, Tensor], files: dict[str, dict | str]) -> None:
    """Write weights, then the other files in their order; whatever an earlier export left goes."""
    writer = safetensors()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.json"), folder / "chat_template.jinja"):
        old.unlink(missing_ok=True)
    writer.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the package leaves it to its owner alone
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(
            content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


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


def picture_files(c: ViTConfig) -> dict[str, dict]:
    """How a ViT's pictures are prepared, CLIP's way."""
    size = c.image_size
    return {"preprocessor_config.json": {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": size}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": size, "width": size}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(MEAN),
        "image_std": list(STD)}}


def chat_files(c: VLMConfig) -> dict[str, dict | str]:
    """What LlavaProcessor makes a dialogue's ids with."""
    return {"chat_template.jinja": TEMPLATE, "processor_config.json": {
        "processor_class": "LlavaProcessor", "patch_size": c.vit.patch_size,
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        "image_token": "<|image|>"}}


def tokenizer_files(tokenizer: Tokenizer, stop: int) -> dict[str, dict]:
    """The tokenizer, and which token ends a text."""
    return {
        "tokenizer.json": tokenizer_file(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.decode([stop]),
            "pad_token": "<|pad|>"},
        "generation_config.json": {"eos_token_id": stop, "pad_token_id": tokenizer.pad},
    }


def tokenizer_file(tokenizer: Tokenizer) -> dict:
    """The content of tokenizer.json, huggingface/tokenizers' format."""
    letters = byte_letters()
    names = {token: "".join(letters[b] for b in token) for token in tokenizer.ranks}
    vocab = {names[token]: rank for token, rank in tokenizer.ranks.items()}
    special = [{"id": len(vocab) + i, "content": name, "special": True, "normalized": False,
                "single_word": False, "lstrip": False, "rstrip": False}
               for i, name in enumerate(SPECIALS)]
    return {"version": "1.0", "added_tokens": special, "normalizer": None,
            "pre_tokenizer": pre_tokenizer(tokenizer.pattern), "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                        "use_regex": False},
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
    """Export a run, say what loads it.

    Raises:
        FileNotFoundError, ValueError: if there is no such run, or `out` is a run's folder.
    """
    if not cfg.out or list(Path(cfg.out).glob("*.pt")):
        raise ValueError(f"out is {cfg.out!r}; name a folder that is not a run's")
    state = checkpoint.load(cfg.run, ("lm", "clip", "align", "sft", "ppo", "dpo"))
    name = export(state, Path(cfg.out))
    print(f"{cfg.out}: transformers.{name}.from_pretrained({cfg.out!r}) loads it")


if __name__ == "__main__":
    options.cli(main, Config)
