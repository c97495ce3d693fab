"""Runs scripts in one process, or in several that torchrun starts; test_processes.py reads on.

    [torchrun ...] together.py FOLDER RUNS OUT STEPS STAGE...
"""

import importlib
import sys

import torch

FEW = {"eval_every": 1000, "log_every": 1, "seed": 3, "threads": 1}
SMALL = {"batch_size": 8, "grad_accum": 2}


def options(stage: str, runs: str) -> dict:
    """What a script needs besides its sizes."""
    towers = {"clip": f"{runs}/clip", "lm": f"{runs}/lm"}
    start = {"init": f"{runs}/sft"}
    return {
        "lm": {"n_layer": 2, "n_embd": 32},
        "clip": {"n_layer": 2, "n_embd": 32, "shift": 2},
        "siglip": {"n_layer": 2, "n_embd": 32, "loss": "siglip", "grad_accum": 1},
        "caption": towers, "align": towers,
        "sft": {"init": f"{runs}/align", "noise": 0.1},
        "reward": start,
        "ppo": start | {"reward": f"{runs}/reward", "minibatches": 2, "n_val": 4,
                        "max_new_tokens": 6, "kl_target": 1.0},
        "grpo": start | {"n_copies": 2, "minibatches": 2, "n_val": 4, "max_new_tokens": 6},
        "dpo": start | {"n_val": 4, "max_new_tokens": 6},
    }[stage]


def main(folder: str, runs: str, out: str, steps: str, *stages: str) -> None:
    for stage in stages:
        script = importlib.import_module(f"train_{stage.replace('siglip', 'clip')}")
        cfg = script.Config(**FEW | SMALL | options(stage, runs) | {
            "data": folder, "out": f"{out}/{stage}", "steps": int(steps)})
        script.main(cfg)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
