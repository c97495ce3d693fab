"""Time what is not read twice: python results/rollouts.py [runs/sft]

Rollouts with the KV cache and without, every answer 64 tokens long; and a step of the reward model,
forward and backward, whose four answers to a prompt share a row, or have one each. Writes
results/preferences/rollouts.json.
"""

import json
import sys
import time
from collections.abc import Callable
from minivlm.loading.models import vlm_from
from dataclasses import dataclass
from pathlib import Path

import torch

from minivlm.conversation import pack, prompt_of
from minivlm.generate import generate
from minivlm.heads import RewardModel
from minivlm.loading.batches import collate
from minivlm.running import checkpoint, machine
from minivlm.tokenizer import Tokenizer


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
    """Seconds of each way, the best of several turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, do in ways.items():
            start = time.time()
            do()
            seconds[name].append(time.time() - start)
    return {name: min(s) for name, s in seconds.items()}


def main(cfg: Settings) -> None:
    """Take turns; keep the fastest of each."""
    began, state = time.time(), checkpoint.load(cfg.run, ("sft", "ppo"))
    model, tokenizer = vlm_from(state), Tokenizer.from_text(state["tokenizer"])
    S = model.config.vit.image_size
    images = torch.zeros(cfg.batch_size, 3, S, S)
    prompts = [prompt_of("Describe the picture.", tokenizer, model.config.vit.n_tokens)] * cfg.batch_size

    def roll(use_cache: bool) -> None:
        made = generate(model, images, prompts, max_new_tokens=cfg.max_new_tokens, stop=-1,
                        temperature=1.0, generator=torch.Generator().manual_seed(0),
                        use_cache=use_cache)
        assert all(len(row) == cfg.max_new_tokens for row in made)

    answer, n = list(range(cfg.answer_tokens)), cfg.n_prompts
    reward_model, size = RewardModel(model), model.config.gpt.block_size
    reward_model.vlm.vit.requires_grad_(False)
    row, segments = pack(prompts[0], [answer] * cfg.n_answers)
    shared = collate([row] * n, tokenizer.pad, size, segments=[segments] * n)
    row, _ = pack(prompts[0], [answer])
    single = collate([row] * (n * cfg.n_answers), tokenizer.pad, size)

    def step(packed: bool) -> None:
        batch, vlm = shared if packed else single, reward_model.vlm
        img_emb = vlm.projector(vlm.vit.features(images[:n]))        # looked at once, either way
        img_emb = img_emb.repeat_interleave(len(batch.idx) // n, 0)
        reward_model.raw(batch.idx, batch.lengths, img_emb=img_emb,
                         segments=batch.segments).sum().backward()

    best = fastest({
        "cache": lambda: roll(True), "no_cache": lambda: roll(False),
        "packed": lambda: step(True), "single": lambda: step(False)}, cfg.repeats)
    figures = {f"{name}_seconds": s for name, s in best.items()} | {
        "times_faster": best["no_cache"] / best["cache"],
        "times_faster_packed": best["single"] / best["packed"]}
    out = Path(__file__).parent / "preferences" / "rollouts.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**machine.provenance(cfg, began), "figures": figures}, indent=1) + "\n")
    print(figures)


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
