"""Writes our weights as huggingface/transformers saves its own, for other programs.

    runs/lm                      GPT2LMHeadModel, or a class of families.py
    runs/clip                    CLIPModel; SiglipModel if it was read from one
    runs/align, sft, ppo, dpo    LlavaForConditionalGeneration, made of CLIPVisionModel and
                                 GPT2Model, or LlamaModel and the like

Each folder gets config.json, model.safetensors and the tokenizer as tokenizer.json. A model
with a ViT also gets a file that tells how pictures are prepared, and a chatbot its chat
template, for AutoProcessor. LlavaForConditionalGeneration has no norm in its projector, so
only a VLM that was trained without one fits into it: train_align.py --projector llava.

Needs the safetensors package. weights.py reads such folders.

Run: python -m minivlm.export --run runs/lm --out exported
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from minivlm.clip import CLIPConfig
from minivlm.gpt import GPTConfig
from minivlm.loading.models import fit_of, vlm_from
from minivlm.pretrained import families
from minivlm.pretrained.tokenizers import LLAMA2_NORMALIZER, pre_tokenizer
from minivlm.pretrained.weight_names import clip_names, llava_names, lm_names, to_theirs
from minivlm.pretrained.weights import safetensors, select_strategy
from minivlm.running import checkpoint
from minivlm.sentencepiece import SentencePiece, TO_TEXT
from minivlm.templates import TEMPLATES, Template
from minivlm.tokenizer import CHATBOTS, Tokenizer, byte_letters
from minivlm.vit import MEAN, STD, ViTConfig
from minivlm.vlm import VLMConfig

@dataclass
class Config:
    """Options of the script; the comments are the help texts."""

    run: str = "runs/lm"  # run folder to export: lm, clip, align, sft, ppo or dpo
    out: str = "exported"  # folder to write


def export(state: dict, folder: Path) -> str:
    """Write a checkpoint's model and tokenizer as transformers saves them.

    Args:
        state: as `checkpoint.load` or `weights.read_vision` returns it. If it has no
            tokenizer, none is written, and CLIP takes a text's feature at the token with
            the largest id.
        folder: made if it does not exist. All its *.json files are removed first, so that
            an earlier export is replaced.

    Returns:
        the name of the class that loads the folder.

    Raises:
        ValueError: if that class cannot hold the model, or safetensors is not installed.
        OSError: if the folder cannot be written.
    """
    stage = state["stage"]
    model = state["configs"]["model"]
    tokenizer = Tokenizer.from_text(state["tokenizer"]) if "tokenizer" in state else None
    files: dict[str, dict | str] = {}
    if stage == "lm":
        c = GPTConfig(**model)
        name = families.CLASSES[families.family_of(c)]
        config = families.write_config(c)
        weights = to_theirs(lm_names(c), state["model"])
    elif stage == "clip":
        c = CLIPConfig.from_dict(model)
        files |= picture_files(c.vit, fit_of(state))
        weights = to_theirs(clip_names(c), state["model"])
        if c.is_siglip:
            name = "SiglipModel"
            config = siglip_config(c)
            for key in ("logit_scale", "logit_bias"):  # ours have no dimension
                weights[key] = weights[key].reshape(1)
        else:
            name = "CLIPModel"
            config = clip_config(c, tokenizer)
    else:
        c = VLMConfig.from_dict(model)
        vlm = vlm_from(state)  # if there are several models, the policy; LoRA is merged
        name = "LlavaForConditionalGeneration"
        config = llava_config(c)
        files |= picture_files(c.vit, fit_of(state))
        files |= chat_files(c, tokenizer)
        weights = to_theirs(llava_names(c), vlm.state_dict())
    if tokenizer is not None:
        files |= tokenizer_files(tokenizer, tokenizer.stop(stage))
    weights = {name: w.float() for name, w in weights.items()}  # what was read may be half
    # written last: a folder that is only half written has no config.json and is refused
    files["config.json"] = config | {"architectures": [name], "dtype": "float32"}
    write(folder, weights, files)
    return name


def write(folder: Path, weights: dict[str, Tensor], files: dict[str, dict | str]) -> None:
    """Remove an earlier export; write weights, then the other files in their order."""
    writer = safetensors()
    folder.mkdir(parents=True, exist_ok=True)
    # an old chat template or an old index of weights would be loaded with the new weights
    for old in (*folder.glob("*.json"), folder / "chat_template.jinja"):
        old.unlink(missing_ok=True)
    path = folder / "model.safetensors"
    writer.save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read
    for name, content in files.items():
        if not isinstance(content, str):
            content = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(content, encoding="utf-8")


# --- config.json ---

ACT_NAMES = {"gelu_tanh": "gelu_pytorch_tanh"}  # our activation -> theirs, if they differ


def vit_config(c: ViTConfig) -> dict:
    """The CLIPVisionConfig or SiglipVisionConfig that describes a ViT."""
    head = {} if c.kind == "clip" else {"vision_use_head": c.pool_head}
    return head | {
        "model_type": f"{c.kind}_vision_model", "hidden_size": c.n_embd,
        "hidden_act": ACT_NAMES.get(c.act, c.act),
        "intermediate_size": c.n_inner or 4 * c.n_embd, "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head, "image_size": c.image_size,
        "patch_size": c.patch_size, "layer_norm_eps": c.norm_eps,
    }


def siglip_config(c: CLIPConfig) -> dict:
    """The SiglipConfig that describes a CLIP with SigLIP's towers."""
    text = {
        "model_type": "siglip_text_model", "vocab_size": c.vocab_size,
        "hidden_act": ACT_NAMES.get(c.act, c.act), "hidden_size": c.text_n_embd,
        "intermediate_size": c.text_n_inner or 4 * c.text_n_embd,
        "num_hidden_layers": c.text_n_layer, "num_attention_heads": c.text_n_head,
        "max_position_embeddings": c.text_block_size, "layer_norm_eps": c.vit.norm_eps,
        "bos_token_id": None, "pad_token_id": c.pad_id, "eos_token_id": None,
        "projection_size": c.n_embd,
    }
    return {"model_type": "siglip", "text_config": text, "vision_config": vit_config(c.vit)}


def clip_config(c: CLIPConfig, tokenizer: Tokenizer | None) -> dict:
    """The CLIPConfig that describes a CLIP; a text's feature is that of its end token.

    Raises:
        ValueError: if it has learned a bias of the logits, which CLIP does not have.
    """
    if c.logit_bias:
        raise ValueError("CLIPModel has no bias of the logits: train with --loss infonce")
    # 2 makes transformers take the feature at the largest id, as for published CLIPs
    end = 2 if tokenizer is None else tokenizer.endoftext
    text = {
        "model_type": "clip_text_model", "vocab_size": c.vocab_size, "hidden_act": c.act,
        "hidden_size": c.text_n_embd, "intermediate_size": 4 * c.text_n_embd,
        "num_hidden_layers": c.text_n_layer, "num_attention_heads": c.text_n_head,
        "max_position_embeddings": c.text_block_size, "layer_norm_eps": 1e-5,
        "bos_token_id": None, "pad_token_id": None, "eos_token_id": end,
    }
    return {
        "model_type": "clip", "projection_dim": c.n_embd, "text_config": text,
        "vision_config": vit_config(c.vit),
    }


def llava_config(c: VLMConfig) -> dict:
    """The LlavaConfig that describes a VLM.

    Raises:
        ValueError: if its projector is not LLaVA's, or if it reads prompts in both
            directions (prefix_lm).
    """
    if c.projector != "llava":
        raise ValueError(
            "LlavaForConditionalGeneration has two layers and no norm in its projector, "
            f"this model has the projector {c.projector!r}; train_align.py --projector "
            "llava makes one that fits"
        )
    if c.prefix_lm:
        raise ValueError(
            "LlavaForConditionalGeneration reads prompts causally, this model does not "
            "(prefix_lm)"
        )
    # LLaVA has its own head beside the text model, so the file holds a tied matrix twice
    text = families.write_config(c.gpt) | {"tie_word_embeddings": False}
    return {
        "model_type": "llava", "vision_config": vit_config(c.vit), "text_config": text,
        "image_token_index": c.image_id, "image_seq_length": c.vit.n_tokens,
        "vision_feature_layer": c.vit.feature_layer, "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": select_strategy(c.vit),
        "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
    }


# --- what prepares a model's input ---


def picture_files(c: ViTConfig, mode: str) -> dict[str, dict]:
    """The file that tells how pictures are prepared: as CLIP does it, up to `mode`.

    Args:
        mode: how they are made square, see `images.fit`.
    """
    square = {"height": c.image_size, "width": c.image_size}
    is_clip = c.kind == "clip"
    if mode == "pad" and not is_clip:
        raise ValueError("pictures are padded with CLIP's mean color, which SigLIP has not")
    return {
        "preprocessor_config.json": {
            # LLaVA's processor is CLIP's, and can also pad
            "image_processor_type": f"{'Llava' if mode == 'pad' else 'CLIP'}ImageProcessor",
            "do_convert_rgb": True, "do_pad": mode == "pad", "do_resize": True,
            "size": square if mode == "stretch" else {"shortest_edge": c.image_size},
            "resample": 3,  # bicubic
            "do_center_crop": mode == "crop", "crop_size": square,
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": list(MEAN) if is_clip else [0.5] * 3,
            "image_std": list(STD) if is_clip else [0.5] * 3,
        },
    }


# LLaVA-1.5's template. tokenizers puts a space before every text and behind every special
# token; in Template, the pieces bring these spaces.
VICUNA = """\
{%- macro said(content) %}
{%- if content is string %}{{ content | replace("<image>", IMAGE) }}
{%- else %}
{%- for piece in content %}
{%- if piece.type == "image" %}{{ IMAGE + "\\n" }}
{%- else %}{{ piece.text | replace("<image>", IMAGE) }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endmacro %}
{{- "<s>" }}{%- if messages[0].role != "system" %}{{ SYSTEM + " " }}{%- endif %}
{%- for message in messages %}
{%- if message.role == "assistant" %}{{ " " + said(message.content) + "</s>" }}
{%- elif message.role == "user" %}{{ "USER: " + said(message.content) + " ASSISTANT:" }}
{%- else %}{{ said(message.content) + " " }}
{%- endif %}
{%- endfor %}"""


def chat_template(t: Template, image: str) -> str:
    """conversation.render in Jinja, for transformers.

    A message is {"role": "user" | "assistant" | "system", "content": ...}; its content is a
    text, or a list of {"type": "image"} and {"type": "text", "text": ...}. "<image>" in a
    text marks the place of a picture. transformers' processor replaces each image token by
    N of them.

    Args:
        image: name of the token that stands for a picture.
    """
    if t.keeps_space:
        template = VICUNA.replace("IMAGE", json.dumps(image))
        return template.replace("SYSTEM", json.dumps(t.default_system))

    def piece(text: str) -> str:
        return f"{{{{ {json.dumps(text)} }}}}" if text else ""

    space = piece(" ") if t.spaced else ""
    said = "{{ said(message.content) }}"
    system = piece(t.system[0]) + said + piece(t.system[1])
    user = piece(t.user[0]) + said + piece(t.user[1] + t.assistant[0])
    assistant = said + piece(t.end + t.assistant[1])
    return f"""\
{{%- macro read(text) %}}
{{%- for part in text.split("<image>") %}}
{{%- if not loop.first %}}{image}{{% endif %}}
{{%- if part | trim %}}{space}{{{{ part | trim }}}}{{% endif %}}
{{%- endfor %}}
{{%- endmacro %}}
{{%- macro said(content) %}}
{{%- if content is string %}}{{{{ read(content) }}}}
{{%- else %}}
{{%- for piece in content %}}
{{%- if piece.type == "image" %}}{image}
{{%- else %}}{{{{ read(piece.text) }}}}
{{%- endif %}}
{{%- endfor %}}
{{%- endif %}}
{{%- endmacro %}}
{piece(t.begin)}{{%- for message in messages %}}
{{%- if message.role == "assistant" %}}{assistant}
{{%- elif message.role == "user" %}}{user}
{{%- else %}}{system}
{{%- endif %}}
{{%- endfor %}}"""


def chat_files(c: VLMConfig, tokenizer: Tokenizer | None) -> dict[str, dict | str]:
    """The files that LlavaProcessor needs to turn a dialogue into ids."""
    template, image = TEMPLATES["minivlm"], "<|image|>"
    if tokenizer is not None:
        template, image = tokenizer.template, tokenizer.decode([tokenizer.image])
    return {
        "chat_template.jinja": chat_template(template, image),
        "processor_config.json": {
            "processor_class": "LlavaProcessor", "patch_size": c.vit.patch_size,
            "vision_feature_select_strategy": select_strategy(c.vit),
            # the class token, which the strategy "default" leaves out of the features
            "num_additional_image_tokens": c.vit.n_class,
            "image_token": image,
        },
    }


def tokenizer_files(tokenizer: Tokenizer, stop: int) -> dict[str, dict]:
    """The files of the tokenizer, and the file that tells which token ends a text.

    Args:
        stop: id of that token.
    """
    return {
        "tokenizer.json": tokenizer_file(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokenizer.decode([stop]),
            "pad_token": tokenizer.decode([tokenizer.pad]),
        },
        "generation_config.json": {"eos_token_id": stop, "pad_token_id": tokenizer.pad},
    }


def tokenizer_file(tokenizer: Tokenizer) -> dict:
    """The content of tokenizer.json, in the format of huggingface/tokenizers."""
    special = []
    for name, i in sorted(tokenizer.special.items(), key=lambda item: item[1]):
        special.append({
            "id": i, "content": name, "special": True, "normalized": False,
            "single_word": False, "lstrip": False, "rstrip": False,
        })
    if isinstance(tokenizer, SentencePiece):
        return {
            "version": "1.0", "added_tokens": special, "pre_tokenizer": None,
            "post_processor": None, "normalizer": LLAMA2_NORMALIZER,
            "decoder": {"type": "Sequence", "decoders": TO_TEXT}, "model": tokenizer.model,
        }
    merges = merges_of(tokenizer.ranks)
    letters = byte_letters()  # the file is text, so each byte is written as a letter
    names = {token: "".join(letters[b] for b in token) for token in tokenizer.ranks}
    return {
        "version": "1.0", "added_tokens": special,
        "normalizer": {"type": "NFC"} if tokenizer.nfc else None,
        "pre_tokenizer": pre_tokenizer(tokenizer.pattern), "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "vocab": {names[token]: rank for token, rank in tokenizer.ranks.items()},
            "fuse_unk": False, "byte_fallback": False,
            # tokens that no merge makes are found as whole words
            "ignore_merges": len(merges) < len(tokenizer.ranks) - 256,
            "merges": [[names[a], names[b]] for a, b in merges],
        },
    }


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that made the tokens, in order: each joins two earlier tokens.

    >>> merges_of({b"a": 0, b"b": 1, b"ab": 2, b"aba": 3})
    [(b'a', b'b'), (b'ab', b'a')]
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pieces = [token[i:i + 1] for i in range(len(token))]
        # join as the tokenizer would, the earliest merge first, until two pieces are left
        while len(pieces) > 2:
            joined = [a + b for a, b in zip(pieces, pieces[1:])]
            order = [ranks.get(piece, rank) for piece in joined]
            first = order.index(min(order))
            if order[first] >= rank:
                break  # no two earlier tokens make this one
            pieces[first:first + 2] = [joined[first]]
        if len(pieces) == 2:
            merges.append((pieces[0], pieces[1]))
    return merges


def main(cfg: Config) -> None:
    """Export a run, and print which class loads it.

    Raises:
        FileNotFoundError, ValueError: if there is no such run, if `out` is empty or a run
            folder, or as `export`.
    """
    # a run folder has a config.json of its own, which an export would replace
    if not cfg.out or list(Path(cfg.out).glob("*.pt")):
        raise ValueError(f"out is {cfg.out!r}; name a folder that is not a run's")
    state = checkpoint.load(cfg.run, ("lm", "clip", "align", *CHATBOTS))
    name = export(state, Path(cfg.out))
    print(f"{cfg.out}: transformers.{name}.from_pretrained({cfg.out!r}) loads it")
