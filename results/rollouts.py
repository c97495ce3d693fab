"""Time two ways of not computing the same thing twice.

    python results/rollouts.py [runs/sft]

First rollouts with the KV cache and without it, every answer 64 tokens long. Then a step
of the reward model, forward and backward, whose four answers to a prompt share a row or
have one each. Writes results/preferences/rollouts.json.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minivlm.conversation import pack, prompt_of
from minivlm.generate import generate
from minivlm.heads import RewardModel
from minivlm.loading.batches import Batch, collate
from minivlm.loading.models import vlm_from
from minivlm.running import checkpoint
from minivlm.running.machine import provenance
from minivlm.vlm import VLM


@dataclass
class Settings:
    """Whose answers, how many at once, how long."""

    run: str = "runs/sft"
    batch_size: int = 128
    max_new_tokens: int = 64
    n_prompts: int = 16
    n_answers: int = 4
    answer_tokens: int = 12
    repeats: int = 3


def fastest(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each way, the least of several turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):  # in turns, so that a busy machine disturbs all alike
        for name, do in ways.items():
            start = time.time()
            do()
            seconds[name].append(time.time() - start)
    return {name: min(s) for name, s in seconds.items()}


def roll(
    model: VLM, images: torch.Tensor, prompt: list[int], cfg: Settings, use_cache: bool
) -> None:
    """Draw answers of cfg.max_new_tokens tokens: no token stops them."""
    answers = generate(
        model, images, [prompt] * cfg.batch_size, max_new_tokens=cfg.max_new_tokens,
        stop=-1, temperature=1.0, generator=torch.Generator().manual_seed(0),
        use_cache=use_cache,
    )
    assert all(len(ids) == cfg.max_new_tokens for ids in answers)


def step(reward_model: RewardModel, images: torch.Tensor, batch: Batch) -> None:
    """Score a batch and compute gradients. images: one of each prompt, (n, 3, S, S)."""
    vlm = reward_model.vlm
    img_emb = vlm.projector(vlm.vit.features(images))                # (n, N, C)
    # the ViT sees a picture once, however many rows its answers have
    img_emb = img_emb.repeat_interleave(len(batch.idx) // len(images), 0)        # (B, N, C)
    scores = reward_model.raw(batch.idx, batch.segments, img_emb=img_emb)
    scores.sum().backward()


def main(cfg: Settings) -> None:
    """Time both pairs and write the file."""
    began = time.time()
    state = checkpoint.load(cfg.run, ("sft", "ppo"))
    model = vlm_from(state)
    tokenizer = checkpoint.tokenizer_of(state)
    S = model.config.vit.image_size
    images = torch.zeros(cfg.batch_size, 3, S, S)
    prompt = prompt_of("Describe the picture.", tokenizer, model.config.vit.n_tokens)

    reward_model = RewardModel(model)
    reward_model.vlm.vit.requires_grad_(False)
    answer = list(range(cfg.answer_tokens))
    n, block_size = cfg.n_prompts, model.config.gpt.block_size
    # all answers of a prompt in one row, then the same answers in rows of their own
    row, segments = pack(prompt, [answer] * cfg.n_answers)
    shared = collate([row] * n, tokenizer.pad, block_size, segments=[segments] * n)
    row, segments = pack(prompt, [answer])
    apart = n * cfg.n_answers
    single = collate([row] * apart, tokenizer.pad, block_size, segments=[segments] * apart)

    seconds = fastest({
        "cache": partial(roll, model, images, prompt, cfg, True),
        "no_cache": partial(roll, model, images, prompt, cfg, False),
        "packed": partial(step, reward_model, images[:n], shared),
        "single": partial(step, reward_model, images[:n], single),
    }, cfg.repeats)
    figures = {f"{name}_seconds": s for name, s in seconds.items()}
    figures["times_faster"] = seconds["no_cache"] / seconds["cache"]
    figures["times_faster_packed"] = seconds["single"] / seconds["packed"]
    out = Path(__file__).parent / "preferences" / "rollouts.json"
    out.parent.mkdir(exist_ok=True)
    report = {**provenance(cfg, began), "figures": figures}
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(figures)


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
