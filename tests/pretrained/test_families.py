"""Llama, Qwen2, Qwen3: published configs, weights there and back, and what is refused by name.

tests/parity/test_models.py sets the same families beside transformers itself.
"""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import stir
from minivlm.gpt import GPT, GPTConfig
from minivlm.pretrained import families
from minivlm.loading.models import vlm_from
from minivlm.pretrained.export import export
from minivlm.pretrained.weights import load_state, read_lm, read_vlm
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM, VLMConfig

# what their config.json says, but for fields that do not change what is computed
PUBLISHED = {
    "SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "vocab_size": 49152, "rope_theta": 100000, "rope_scaling": None, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "max_position_embeddings": 8192, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "rope_interleaved": False,
        "is_llama_config": True, "torch_dtype": "bfloat16", "use_cache": True,
    },
    "Llama-3.2-1B": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192,
        "vocab_size": 128256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "head_dim": 64,
        "tie_word_embeddings": True, "max_position_embeddings": 131072,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
        "vocab_size": 151936, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "max_position_embeddings": 32768, "sliding_window": 32768,
        "max_window_layers": 24, "use_sliding_window": False,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072,
        "vocab_size": 151936, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 40960,
    },
}
N_WEIGHTS = {  # in millions, as their pages say or their files weigh
    "SmolLM2-135M": 134.5, "Llama-3.2-1B": 1235.8, "Qwen2.5-0.5B": 494.0, "Qwen3-0.6B": 596.0,
}


@pytest.fixture(params=families.PARTS)
def config(request, gpt_config: GPTConfig) -> GPTConfig:
    """A small model of each family; its head is tied in one of them."""
    return replace(
        gpt_config, norm="rms", act="swiglu", n_inner=40, n_head=4, n_kv_head=2, head_dim=8,
        learned_positions=False, rotary_base=100.0, tied=request.param == "llama",
        **families.PARTS[request.param])


@pytest.fixture
def folder(config, tmp_path):
    """The model as it is published."""
    model = stir(GPT(config))
    state = {"stage": "lm", "configs": {"model": asdict(config)}, "model": model.state_dict()}
    export(state, tmp_path)
    return tmp_path


def change(folder, **fields) -> None:
    """Change fields of config.json; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_make_models_of_the_published_size(name, tmp_path):
    """Catches: heads of the wrong width, an MLP four times as wide, a head counted twice."""
    c = families.read_config(PUBLISHED[name], tmp_path)
    with torch.device("meta"):
        n = sum(p.numel() for p in GPT(c).parameters())
    assert n / 1e6 == pytest.approx(N_WEIGHTS[name], rel=1e-3)
    again = families.read_config(families.write_config(c), tmp_path)
    assert again == c and families.family_of(c) == PUBLISHED[name]["model_type"]
    assert (c.scaling is not None) == (name == "Llama-3.2-1B")


def test_a_model_is_read_back_bit_for_bit(folder, config):
    """Catches: a joined matrix that is split at the wrong rows; gate and up exchanged."""
    state = read_lm(folder)
    assert state["configs"]["model"] == asdict(config)
    export(state, folder / "again")
    one, two = (load_file(f / "model.safetensors") for f in (folder, folder / "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert ("lm_head.weight" in one) == (not config.tied)


def test_a_head_that_is_not_the_embedding_is_refused(folder, config):
    """Catches: one of two different matrices dropped without a word."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    if config.tied:  # some files hold the tied matrix twice
        wte = weights["model.embed_tokens.weight"]
        save_file(weights | {"lm_head.weight": wte.clone()}, path)
        assert torch.equal(read_lm(folder)["model"]["head.weight"], wte)
        save_file(weights | {"lm_head.weight": wte + 1}, path)
        message = "the head is not tied"
    else:
        del weights["lm_head.weight"]
        save_file(weights, path)
        message = "the head is missing"
    with pytest.raises(ValueError, match=message):
        read_lm(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_chatbot_is_read_back_under_old_names_and_new(kind, config, vit_config, tmp_path):
    """Catches: a head that is tied though it was not, a layer for features that is not read, names
    of one version of transformers only.
    """
    words = Tokenizer.train(["a red circle", "the red square, a blue circle"] * 3, 290)
    vit = replace(vit_config, kind=kind, feature_layer=-1)
    if kind == "siglip":
        vit = replace(vit, act="gelu_tanh", norm_eps=1e-6, n_inner=40)
    c = VLMConfig(words.image, vit, replace(config, vocab_size=words.vocab_size), "llava")
    vlm = stir(VLM(c))
    state = {"stage": "sft", "configs": {"model": asdict(c)}, "model": vlm.state_dict(),
             "tokenizer": words.to_text()}
    export(state, tmp_path)
    path = tmp_path / "model.safetensors"
    old = load_file(path)
    for rename in (
        lambda name: name, lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
        lambda name: "lm_head.weight" if "lm_head" in name
        else f"model.{name.replace('language_model.model.', 'language_model.')}",
    ):
        save_file({rename(name): x for name, x in old.items()}, path)
        read = load_state(tmp_path, ("sft",))
        again = vlm_from(read)
        assert again.config == c and read["configs"]["tokenizer"] == words.identity
        assert all(torch.equal(x, again.state_dict()[k]) for k, x in vlm.state_dict().items())
    config_file = json.loads((tmp_path / "config.json").read_text())
    for fields, message in (
        ({"image_token_index": 5}, "image_token_index is 5, minivlm has"),
        ({"vision_feature_layer": [1, 2]}, r"vision_feature_layer is \[1, 2\]"),
        ({"vision_feature_select_strategy": "all"}, "vision_feature_select_strategy is 'all'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"vision_config": {"model_type": "dinov2"}}, "a vision tower of type 'dinov2'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config_file | fields))
        with pytest.raises(ValueError, match=message):
            read_vlm(tmp_path)


@pytest.mark.parametrize("fields, message", [
    ({"model_type": "gemma"}, "model_type is 'gemma', minivlm has gpt2, llama, qwen2, qwen3"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', minivlm has 'silu' only"),
    ({"attention_bias": True}, "attention_bias is True, minivlm has False only"),
    ({"use_sliding_window": True}, "use_sliding_window is True"),
    ({"layer_types": ["sliding_attention"]}, "layer_types is"),
    ({"partial_rotary_factor": 0.5}, "config.json has 'partial_rotary_factor'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": "x"}}, "factor is 'x', expected a"),
    ({"rope_parameters": {"rope_theta": 0.5}}, "rotary_base is 0.5"),
    ({"num_key_value_heads": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
    ({"head_dim": 7}, "heads of width 7: rotation needs an even width"),
    ({"rms_norm_eps": "small"}, "norm_eps is 'small'"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ({"hidden_size": 40}, "weights that do not fit its own config"),
])
def test_what_we_do_not_have_is_refused_by_name(fields, message, folder):
    """Catches: a field that is read over, and changes what the model should compute."""
    change(folder, **fields)
    with pytest.raises(ValueError, match=message):
        read_lm(folder)
