"""What all tests share: one seed, one thread, no network, models small enough for milliseconds."""

import random
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train_align
import train_caption
import train_clip
import train_dpo
import train_grpo
import train_lm
import train_ppo
import train_reward
import train_sft
from data import preferences
from data.book import prepare
from minivlm.clip import CLIP, CLIPConfig
from minivlm.gpt import GPT, GPTConfig
from minivlm.tokenizer import Tokenizer
from minivlm.vit import ViT, ViTConfig
from minivlm.vlm import VLM, VLMConfig

# --- surroundings, for every test ---


@pytest.fixture(scope="session", autouse=True)
def reproducible() -> None:
    """One thread and deterministic kernels: a sum must not change with the order of its parts."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random numbers, whichever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test that looks up a name or opens a connection; sockets between processes are fine.

    `pytest.fail` raises outside of Exception, so no `except Exception` in the code can swallow it.
    """
    def guarded(original: Callable) -> Callable:
        def connect(self: socket.socket, address: object) -> object:
            if self.family != socket.AF_UNIX:
                pytest.fail(f"the test opened a network connection to {address}")
            return original(self, address)
        return connect

    def look_up(host: object, *args: object, **options: object) -> None:
        pytest.fail(f"the test looked up {host} on the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


# --- text ---


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The smallest tokenizer there is: 256 bytes, no joins, seven special tokens."""
    return Tokenizer({bytes([i]): i for i in range(256)})


# --- tiny models ---


@pytest.fixture
def vit_config() -> ViTConfig:
    """Pictures of 16 x 16 pixels in N = 4 patches."""
    return ViTConfig(image_size=16, patch_size=8, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def gpt_config(tokenizer: Tokenizer) -> GPTConfig:
    """A context of 32 tokens over bytes and special tokens, rotary positions."""
    return GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=32,
                     rotary_base=50.0)


@pytest.fixture
def clip_config(vit_config: ViTConfig, tokenizer: Tokenizer) -> CLIPConfig:
    """Both towers of width 32, the shared space of 16, so that no width passes for another."""
    return CLIPConfig(vit=vit_config, vocab_size=tokenizer.vocab_size, text_block_size=24,
                      text_n_layer=2, text_n_head=2, text_n_embd=32, n_embd=16)


@pytest.fixture
def vlm_config(vit_config: ViTConfig, gpt_config: GPTConfig, tokenizer: Tokenizer) -> VLMConfig:
    """The ViT and the GPT above, joined by an MLP."""
    return VLMConfig(image_id=tokenizer.image, vit=vit_config, gpt=gpt_config)


def stir(model: nn.Module) -> nn.Module:
    """Move every parameter off its start: no bias stays 0, no norm 1, outputs differ visibly."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


@pytest.fixture
def vit(vit_config: ViTConfig) -> nn.Module:
    """A stirred ViT."""
    return stir(ViT(vit_config))


@pytest.fixture
def gpt(gpt_config: GPTConfig) -> nn.Module:
    """A stirred GPT."""
    return stir(GPT(gpt_config))


@pytest.fixture
def clip(clip_config: CLIPConfig) -> nn.Module:
    """A stirred CLIP."""
    return stir(CLIP(clip_config))


@pytest.fixture
def vlm(vlm_config: VLMConfig) -> nn.Module:
    """A stirred VLM."""
    return stir(VLM(vlm_config))


# --- every stage on a tiny data set, trained once for all tests ---

SMALL = {"eval_every": 2, "log_every": 1, "seed": 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A prepared picture book of a few hundred pictures."""
    out = tmp_path_factory.mktemp("prepared")
    sizes = {"n_train": 200, "n_val": 40, "n_web": 20, "n_text": 300, "n_zeroshot": 1}
    prepare.main(prepare.Config(str(out), **sizes, workers=1))
    return out


@pytest.fixture(scope="session")
def runs(folder, tmp_path_factory) -> Path:
    """Every stage trained for a few steps, one from the other."""
    out = tmp_path_factory.mktemp("runs")
    small = {"data": str(folder), "steps": 4, **SMALL}
    train_lm.main(train_lm.Config(  # learned positions, as GPT-2, to which the runs are exported
        out=f"{out}/lm", n_layer=2, n_embd=32, batch_size=8, rotary_base=0.0, act="gelu_tanh",
        **small))
    train_clip.main(
        train_clip.Config(out=f"{out}/clip", n_layer=2, n_embd=32, batch_size=16, **small)
    )
    towers = {"clip": f"{out}/clip", "lm": f"{out}/lm"}
    train_caption.main(train_caption.Config(
        out=f"{out}/caption", **towers, objective="blip", batch_size=8, **small))
    train_align.main(train_align.Config(out=f"{out}/align", **towers, batch_size=8, **small))
    train_sft.main(train_sft.Config(out=f"{out}/sft", init=f"{out}/align", batch_size=8, **small))
    # answers of a model trained for 4 steps are equally bad: ties would leave few rankings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "TIE", 0.0)
        preferences.main(preferences.Config(
            run=f"{out}/sft", data=str(folder), n=24, n_val=6, k=3, max_new_tokens=6, seed=3))
    train_reward.main(
        train_reward.Config(init=f"{out}/sft", out=f"{out}/reward", batch_size=6, **small))
    train_ppo.main(train_ppo.Config(
        init=f"{out}/sft", reward=f"{out}/reward", out=f"{out}/ppo", batch_size=6, minibatches=1,
        epochs=1, n_val=6, max_new_tokens=6, kl_target=1.0, **small))
    train_grpo.main(train_grpo.Config(
        init=f"{out}/sft", reward=f"{out}/reward", out=f"{out}/grpo", batch_size=6, n_copies=3,
        minibatches=1, n_val=6, max_new_tokens=6, **small))
    train_dpo.main(train_dpo.Config(
        init=f"{out}/sft", out=f"{out}/dpo", batch_size=6, n_val=6, max_new_tokens=6, **small))
    return out
