"""Time rollouts with and without the KV cache: python results/rollouts.py [runs/sft]

Every answer is 64 tokens long, whatever the model would like. Writes
results/preferences/rollouts.json.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, to run as a script

from minivlm import checkpoint, run  # noqa: E402
from minivlm.generate import generate  # noqa: E402
from minivlm.measure import prompt_of  # noqa: E402
from minivlm.tokenizer import Tokenizer  # noqa: E402
from minivlm.vlm import VLM  # noqa: E402


@dataclass
class Settings:
    """Whose answers, how many at once, how long."""

    run: str = "runs/sft"
    batch_size: int = 128
    max_new_tokens: int = 64
    repeats: int = 3


def main(cfg: Settings) -> None:
    """Take turns, three times each; keep the fastest of each."""
    began, state = time.time(), checkpoint.load(cfg.run, ("sft", "ppo"))
    model, tokenizer = VLM.from_checkpoint(state), Tokenizer.from_text(state["tokenizer"])
    S = model.config.vit.image_size
    images = torch.zeros(cfg.batch_size, 3, S, S)
    prompts = [prompt_of("Describe the picture.", model, tokenizer)] * cfg.batch_size
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(cfg.repeats):
        for use_cache in seconds:
            start = time.time()
            made = generate(model, images, prompts, max_new_tokens=cfg.max_new_tokens, stop=-1,
                            temperature=1.0, generator=torch.Generator().manual_seed(0),
                            use_cache=use_cache)
            seconds[use_cache].append(time.time() - start)
            assert all(len(row) == cfg.max_new_tokens for row in made)
    best = {use_cache: min(s) for use_cache, s in seconds.items()}
    figures = {"cache_seconds": best[True], "no_cache_seconds": best[False],
               "times_faster": best[False] / best[True]}
    out = Path(__file__).parent / "preferences" / "rollouts.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**run.provenance(cfg, began), "figures": figures}, indent=1) + "\n")
    print(figures)


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
