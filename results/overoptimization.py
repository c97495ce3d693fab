"""Over-optimization: the best of n answers, and PPO, by reward models of few and many labels.

    python results/overoptimization.py runs/sft runs/results/preferences

Draws 64 answers to each of 300 held-out questions. A reward model chooses the best of n. Its
results/preferences/best_of_n_<run>-seed0.json holds the chosen answers' mean score, and their
mean true score (by the scene, 1 to 5), which no model learned from. The gain is the rise of
the true score. Gao et al. describe it by two forms; d is the square root of the KL, in nats:

    best of n    gain = d (a - b d)          KL = ln n - (n - 1) / n
    RL           gain = d (a - b ln d)       from the logs of PPO in results/preferences

Both forms are fitted. The larger b, the sooner the reward model is over-optimized. Last,
overoptimization.png is drawn.

Source: Gao et al. 2022, arXiv:2210.10760, section 3.1; the estimate of the best of n from N
answers: Nakano et al. 2021, arXiv:2112.09332, appendix I; the KL: Stiennon et al. 2020,
arXiv:2009.01325.
"""

import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from charts import COLORS, row_of_panels
from minivlm.generate import generate
from minivlm.heads import RewardModel
from minivlm.loading.models import reward_model_from, vlm_from
from minivlm.preferences.prompts import Prompts
from minivlm.pretrained.weights import load_state
from minivlm.rollout import PromptBatch, scores_of
from minivlm.running import checkpoint
from minivlm.running.machine import provenance, seed_everything
from minivlm.tokenizer import CHATBOTS, Tokenizer
from tables import read_log

HERE = Path(__file__).parent / "preferences"
REWARDS = {"reward_500": "500", "reward_2000": "2,000", "reward": "4,300"}  # run -> labels
LOGS = {"kl0_500": "PPO, 500", "kl0": "PPO, 4,300"}  # of PPO without a penalty
AT = 50  # questions answered at once


@dataclass
class Settings:
    """What is measured."""

    run: str  # run folder of the chatbot
    rewards: str  # folder with runs of reward models, named <name>-seed<n>
    data: str = "data/book/prepared"
    n_questions: int = 300
    n: int = 64  # answers to each question
    seed: int = 0


# --- the best of n ---


def of_best(scores: np.ndarray, worth: np.ndarray, n: int) -> float:
    """The mean worth of the answer with the highest score among n, over all choices of n.

        sum over i of C(i - 1, n - 1) / C(N, n) worth_i       the answers in order of their scores

    Args:
        scores, worth: (B, N) of N answers to each of B questions; equal scores stand in the
            order of the answers.

    >>> of_best(np.array([[1.0, 2.0, 3.0]]), np.array([[0.0, 3.0, 6.0]]), 2)
    5.0
    """
    N = scores.shape[1]
    order = scores.argsort(axis=1, kind="stable")
    ways = np.array([math.comb(i, n - 1) for i in range(N)], dtype=float) / math.comb(N, n)
    return float((np.take_along_axis(worth, order, axis=1) * ways).sum(1).mean())


def kl_of_best(n: int) -> float:
    """The KL of the best of n answers to a single one, in nats.

    >>> kl_of_best(1), round(kl_of_best(2), 4)
    (0.0, 0.1931)
    """
    return math.log(n) - (n - 1) / n


def fitted(d: np.ndarray, gain: np.ndarray, is_rl: bool) -> dict[str, float]:
    """Fit gain = d (a - b d), or d (a - b ln d), by least squares.

    Returns:
        a, b, and r2, the share of the gains' variance that the form explains.

    >>> d = np.array([0.5, 1.0, 2.0])
    >>> {k: round(float(v), 6) for k, v in fitted(d, d * (3 - 2 * d), False).items()}
    {'a': 3.0, 'b': 2.0, 'r2': 1.0}
    """
    bend = np.log(d) if is_rl else d
    forms = np.stack([d, -d * bend], axis=1)                         # (points, 2)
    (a, b), *_ = np.linalg.lstsq(forms, gain, rcond=None)
    rest = gain - forms @ np.array([a, b])
    return {"a": float(a), "b": float(b), "r2": float(1 - rest.var() / gain.var())}


# --- measuring ---


@torch.no_grad()
def draw(policy, batch: PromptBatch, tokenizer: Tokenizer, cfg: Settings) -> list[list[int]]:
    """cfg.n answers to each question, side by side, each with its end."""
    return generate(
        policy, batch.images, batch.prompts, n_copies=cfg.n, stop=tokenizer.end,
        keep_stop=True, max_new_tokens=96, temperature=1.0,
        generator=torch.Generator().manual_seed(batch.seed),
    )


@torch.no_grad()
def scored(
    judge: RewardModel, batch: PromptBatch, answers: list[list[int]], tokenizer: Tokenizer
) -> torch.Tensor:
    """The scores of all answers, (B * k,)."""
    feats = judge.vlm.vit.features(batch.images)
    return scores_of(judge, feats, batch.reward_prompts, answers, tokenizer)


def main(cfg: Settings) -> None:
    """Measure, write the files, draw the figure."""
    began = time.time()
    seed_everything(cfg.seed)
    state = load_state(cfg.run, CHATBOTS)
    policy, tokenizer = vlm_from(state).eval(), checkpoint.tokenizer_of(state)
    prompts = Prompts(cfg.data, "train", policy, tokenizer, facts=False)
    questions = random.Random(cfg.seed).sample(prompts.load("prompts_val", 96), cfg.n_questions)
    judges = {}
    for name in REWARDS:
        [run] = sorted(Path(cfg.rewards).glob(f"{name}-seed[0-9]"))[:1]
        judges[name] = reward_model_from(checkpoint.load(run, ("reward",))).eval()
    truth, scores = [], {name: [] for name in judges}
    for i in range(0, len(questions), AT):
        part = questions[i:i + AT]
        batch = prompts.batch(part, cfg.seed + i)
        answers = draw(policy, batch, tokenizer, cfg)
        texts = [tokenizer.decode([x for x in a if x != tokenizer.end]).strip() for a in answers]
        truth += prompts.true_scores([q for q in part for _ in range(cfg.n)], texts)
        for name, judge in judges.items():
            scores[name] += scored(judge, batch, answers, tokenizer).tolist()
    true = np.array(truth).reshape(-1, cfg.n)
    ns = [2 ** i for i in range(int(math.log2(cfg.n)) + 1)]
    d = np.array([math.sqrt(kl_of_best(n)) for n in ns])
    lines: dict[str, tuple[list, list]] = {}  # label -> points of score, of true score
    for name, of_judge in scores.items():
        by_judge = np.array(of_judge).reshape(-1, cfg.n)
        proxy = [of_best(by_judge, by_judge, n) for n in ns]
        gold = np.array([of_best(by_judge, true, n) for n in ns])
        figures = {f"true/{n}": value for n, value in zip(ns, gold.tolist())}
        figures |= {f"score/{n}": value for n, value in zip(ns, proxy)}
        figures |= fitted(d[1:], gold[1:] - gold[0], is_rl=False)
        figures["gain"] = float(gold[-1] - gold[0])
        figures["possible"] = float(true.max(1).mean() - gold[0])
        write(f"best_of_n_{name}", figures, cfg, began)
        lines[f"best of n, {REWARDS[name]}"] = list(zip(d, proxy)), list(zip(d, gold))
    for name, label in LOGS.items():
        [log] = [read_log(path) for path in sorted(HERE.glob(f"{name}-seed[0-9].csv"))[:1]]
        rows = [row for row in log if "val_kl_answer" in row]  # all of the same held-out questions
        root = np.array([math.sqrt(max(0.0, row["val_kl_answer"])) for row in rows])
        gold = np.array([row["val_true_score"] for row in rows])
        figures = fitted(root[1:], gold[1:] - gold[0], is_rl=True)
        write(f"rl_{name}", figures | {"gain": float(gold[-1] - gold[0])}, cfg, began)
        lines[label] = list(zip(root, [row["val_score"] for row in rows])), list(zip(root, gold))
    titles = "score by the reward model", "true score, by the scene (1 .. 5)"
    panels = [(title, [line[i] for line in lines.values()]) for i, title in enumerate(titles)]
    x_title = "KL to the chatbot, nats an answer (square root)"
    sheet = row_of_panels(panels, dict(zip(lines, COLORS)), x_title, lambda x: f"{x * x:.3g}")
    sheet.save(HERE / "overoptimization.png")


def write(name: str, figures: dict[str, float], cfg: Settings, began: float) -> None:
    """Write a result file."""
    report = {**provenance(cfg, began), "figures": figures}
    (HERE / f"{name}-seed{cfg.seed}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
