"""Families of language models: config.json of each, in both directions.

    gpt2     GPT-2, all sizes
    llama    SmolLM2, TinyLlama, Llama 3.2, Vicuna
    qwen2    Qwen2, Qwen2.5      biases on queries, keys and values
    qwen3    Qwen3               norms on queries and keys, no biases

The last three have RMSNorm, rotary positions alone, SwiGLU and grouped heads. A field that
asks for anything else is refused by its name. In the last three, so is a field that is not
known: it may change what the model computes.

Source: huggingface/transformers' GPT2Config, LlamaConfig, Qwen2Config and Qwen3Config.
"""

from dataclasses import asdict
from pathlib import Path

from minivlm.gpt import GPTConfig
from minivlm.rotary import Llama3Scaling
from minivlm.running.files import brief, expect, naming, sizes

# family -> the parts in which it differs
PARTS = {
    "llama": {"bias": "none", "qk_norm": False},
    "qwen2": {"bias": "qkv", "qk_norm": False},
    "qwen3": {"bias": "none", "qk_norm": True},
}
CLASSES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
GPT2_ACTS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}  # ours -> activation_function
# fields that say nothing about what a forward pass computes
INERT = {
    "_attn_implementation", "_name_or_path", "architectures", "attention_dropout",
    "bos_token_id", "dtype", "eos_token_id", "initializer_range", "is_llama_config",
    "max_window_layers", "model_type", "pad_token_id", "pretraining_tp", "sliding_window",
    "torch_dtype", "transformers.js_config", "transformers_version", "unk_token_id",
    "use_cache",
}


def read_config(config: dict, folder: Path) -> GPTConfig:
    """The GPTConfig of a published config of one of the families.

    Raises:
        ValueError: if a field is unknown, or asks for something that minivlm does not have.
    """
    family = config.get("model_type")
    if family not in list(CLASSES):  # a list has no hash
        raise ValueError(
            f"{folder}: model_type is {brief(family)}, minivlm has {', '.join(CLASSES)}"
        )
    read = read_gpt2_config if family == "gpt2" else read_llama_config
    with naming(folder):
        return read(config, folder)


def read_gpt2_config(config: dict, folder: Path) -> GPTConfig:
    """The GPTConfig of a GPT2Config; raises as `read_config`."""
    expect(
        config, folder, layer_norm_epsilon=1e-5, scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
    )
    acts = {theirs: ours for ours, theirs in GPT2_ACTS.items()}
    act = config.get("activation_function", "gelu_new")
    if act not in list(acts):
        raise ValueError(
            f"{folder}: activation_function is {brief(act)}, minivlm has {', '.join(acts)}"
        )
    C, n_layer, n_head, T, V = sizes(
        config, folder, n_embd=768, n_layer=12, n_head=12, n_positions=1024,
        vocab_size=50257,
    )
    if config.get("n_inner") is not None:  # None means four times the width, as in ours
        expect(config, folder, n_inner=4 * C)
    return GPTConfig(V, T, n_layer, n_head, C, act=acts[act])


def read_llama_config(config: dict, folder: Path) -> GPTConfig:
    """The GPTConfig of a config of another family; raises as `read_config`."""
    family = config["model_type"]
    C, n_layer, H, n_inner, V, T = sizes(
        config, folder, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
        intermediate_size=11008 if family == "llama" else 22016,
        vocab_size=32000 if family == "llama" else 151936,
        max_position_embeddings=2048 if family == "llama" else 32768,
    )
    known = {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "vocab_size", "max_position_embeddings", "num_key_value_heads", "head_dim",
        "rms_norm_eps", "rope_parameters", "rope_theta", "rope_scaling",
        "tie_word_embeddings",
    }
    only = {
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "use_sliding_window": False, "rope_interleaved": False,
        "layer_types": ["full_attention"] * n_layer,
    }
    expect(config, folder, **only)
    unknown = sorted(config.keys() - INERT - known - only.keys())
    if unknown:
        raise ValueError(f"{folder}: config.json has {unknown[0]!r}, which is not known")
    [G] = sizes(config, folder, num_key_value_heads=H if family == "llama" else 32)
    [D] = sizes(config, folder, head_dim=128 if family == "qwen3" else max(C // H, 1))
    base, scaling = read_rope(config, folder)
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise ValueError(f"{folder}: tie_word_embeddings is {brief(tied)}")
    return GPTConfig(
        V, T, n_layer, H, C, act="swiglu", n_inner=n_inner, norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6), n_kv_head=G, head_dim=D,
        learned_positions=False, rotary_base=base, rotary_scaling=scaling, tied=tied,
        **PARTS[family],
    )


def read_rope(config: dict, folder: Path) -> tuple[float, dict | None]:
    """The base of the rotary positions, and the fields of Llama3Scaling or None.

    Older files have `rope_theta` and `rope_scaling`, newer ones both in `rope_parameters`.

    Raises:
        ValueError: for another kind of scaling, or a field that is no number.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{folder}: rope_scaling is {brief(rope)}, expected an object")
    known = {
        "rope_theta", "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor",
        "original_max_position_embeddings",
    }
    unknown = sorted(rope.keys() - known)
    if unknown:
        raise ValueError(f"{folder}: rotary positions with {unknown[0]!r}, not known")
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise ValueError(
            f"{folder}: rope_type is {brief(kind)}, minivlm has 'default' and 'llama3'"
        )
    scaling = Llama3Scaling(
        rope.get("factor"), rope.get("low_freq_factor"), rope.get("high_freq_factor"),
        rope.get("original_max_position_embeddings"),
    )
    return base, asdict(scaling)


def family_of(c: GPTConfig) -> str:
    """The family that can hold a model: "llama", "qwen2" or "qwen3"; "gpt2" for others."""
    if c.norm != "rms" or c.act != "swiglu" or c.learned_positions:
        return "gpt2"
    for family, parts in PARTS.items():
        if all(getattr(c, name) == value for name, value in parts.items()):
            return family
    return "gpt2"


def write_config(c: GPTConfig) -> dict:
    """The config.json of a model; raises as `write_gpt2_config`."""
    family = family_of(c)
    if family == "gpt2":
        return write_gpt2_config(c)
    H, G, D = c.block.heads
    rope = {"rope_type": "default", "rope_theta": c.rotary_base}
    s = c.scaling
    if s is not None:
        rope |= {
            "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low,
            "high_freq_factor": s.high, "original_max_position_embeddings": s.original,
        }
    return {
        "model_type": family, "vocab_size": c.vocab_size, "hidden_size": c.n_embd,
        "intermediate_size": c.n_inner or 4 * c.n_embd, "num_hidden_layers": c.n_layer,
        "num_attention_heads": H, "num_key_value_heads": G, "head_dim": D,
        "hidden_act": "silu", "max_position_embeddings": c.block_size,
        "rms_norm_eps": c.norm_eps, "rope_parameters": rope,
        "tie_word_embeddings": c.tied, "attention_dropout": c.dropout,
        # generation_config.json tells which token ends a text
        "bos_token_id": None, "eos_token_id": None,
    }


def write_gpt2_config(c: GPTConfig) -> dict:
    """The GPT2Config that describes a GPT.

    Raises:
        ValueError: if it rotates queries and keys, which GPT-2 does not, or has another
            part that GPT-2 does not have.
    """
    if c.act not in GPT2_ACTS:
        raise ValueError(f"act is {c.act!r}, GPT-2 has one of {', '.join(GPT2_ACTS)}")
    if c.rotary_base:
        raise ValueError(
            "this GPT rotates queries and keys, GPT-2 does not: train with --rotary_base 0"
        )
    plain = GPTConfig(
        c.vocab_size, c.block_size, c.n_layer, c.n_head, c.n_embd, c.dropout, c.act
    )
    for name, value in asdict(plain).items():
        if getattr(c, name) != value:
            raise ValueError(f"{name} is {getattr(c, name)!r}, GPT-2 has {value!r} only")
    return {
        "model_type": "gpt2", "vocab_size": c.vocab_size, "n_positions": c.block_size,
        "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head, "n_inner": None,
        "activation_function": GPT2_ACTS[c.act], "layer_norm_epsilon": 1e-5,
        "embd_pdrop": c.dropout, "attn_pdrop": c.dropout, "resid_pdrop": c.dropout,
        # generation_config.json tells which token ends a text
        "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True,
    }
