"""Does a reward model see what a description invents? Leave one sentence out, and ask it.

    python results/leave_out.py runs/sft runs/reward reward

The chatbot describes 300 held-out pictures in detail. Each sentence that names one thing is left
out in turn; of the description with it and without it, which one scores higher? Writes
results/preferences/leave_out_<name>-seed0.json: the share of descriptions that score higher
without a sentence about a thing that is plain to see, hardly visible, or not there, and by how
much, in standard deviations of the score.
"""

import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from minivlm.conversation import prompt_of, spoken
from minivlm.evaluation.measure import DESCRIBE, EvalData, make_answerer
from minivlm.loading.images import Pictures
from minivlm.loading.models import fit_of, reward_model_from, vlm_from
from minivlm.loading.prepared import load_meta
from minivlm.metrics import mentions
from minivlm.pretrained.weights import load_state
from minivlm.rollout import scores_of
from minivlm.running import checkpoint
from minivlm.running.machine import provenance
from minivlm.tokenizer import CHATBOTS

HERE = Path(__file__).parent / "preferences"


@dataclass
class Settings:
    """What is measured."""

    run: str  # run folder of the chatbot
    reward: str  # run folder of the reward model
    name: str  # of the result
    data: str = "data/book/prepared"
    n: int = 300  # pictures


def without_each(answer: str) -> list[tuple[str, str]]:
    """Each sentence of an answer, and the answer without it.

    >>> without_each("It is day. There is a cup.")
    [('It is day.', 'There is a cup.'), ('There is a cup.', 'It is day.')]
    """
    sentences = [f"{part}." for part in answer.removesuffix(".").split(". ")]
    return [(one, " ".join(sentences[:i] + sentences[i + 1:])) for i, one in enumerate(sentences)]


@torch.no_grad()
def main(cfg: Settings) -> None:
    """Measure, and write the file."""
    began = time.time()
    state = load_state(cfg.run, CHATBOTS)
    policy, tokenizer = vlm_from(state).eval(), checkpoint.tokenizer_of(state)
    meta = load_meta(cfg.data)
    size = policy.config.vit.image_size
    data = EvalData(cfg.data, meta, tokenizer, Pictures(cfg.data, size, fit_of(state)))
    records = [r for r in data.records("val", "image") if r.get("border") != "private"][:cfg.n]
    _, question = DESCRIBE["chair_detail"]
    ask = make_answerer(policy, data, tokenizer.end, 96, 100)
    answers = ask([{"image": r["image"], "question": question} for r in records])
    judge = reward_model_from(checkpoint.load(cfg.reward, ("reward",))).eval()
    prompt = prompt_of(question, tokenizer, policy.config.vit.n_tokens)
    gains = defaultdict(list)  # kind of thing -> score without its sentence, less that with it
    for record, answer in zip(records, answers):
        kinds, texts = [], [answer]
        shown, hardly = (data.object_names(record, (hidden,)) for hidden in (False, True))
        for sentence, rest in without_each(answer):
            named = mentions(sentence, meta["phrases"])
            if len(named) == 1 and rest:
                seen, hidden = named[0] in shown, named[0] in hardly
                kinds.append("clear" if seen else "hardly" if hidden else "absent")
                texts.append(rest)
        feats = judge.vlm.vit.features(data.look([record["image"]]))
        rows = [spoken(text, tokenizer) + [tokenizer.end] for text in texts]
        score = scores_of(judge, feats, [prompt], rows, tokenizer)
        for kind, gain in zip(kinds, (score[1:] - score[0]).tolist()):
            gains[kind].append(gain)
    figures = {}
    for kind, of_kind in gains.items():
        figures[f"left_out/{kind}"] = sum(gain > 0 for gain in of_kind) / len(of_kind)
        figures[f"left_out/{kind}_gain"] = statistics.fmean(of_kind)
        figures[f"left_out/{kind}_n"] = len(of_kind)
    report = {**provenance(cfg, began), "figures": figures}
    (HERE / f"leave_out_{cfg.name}-seed0.json").write_text(json.dumps(report, indent=1) + "\n")
    print({name: round(value, 3) for name, value in figures.items()})


if __name__ == "__main__":
    main(Settings(*sys.argv[1:]))
