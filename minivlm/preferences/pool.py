"""Answers to be ranked: drawn from one chatbot or several, or read from a file of rankings.

Source: a pool of models that answer: Silkie, arXiv:2312.10665, section 3.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm.conversation import prompt_of
from minivlm.generate import generate
from minivlm.loading.images import Pictures
from minivlm.loading.models import vlm_from
from minivlm.loading.prepared import load_records
from minivlm.running import checkpoint
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

QuestionsWithAnswers = list[tuple[dict, list[str]]]


def sample(
    model: VLM, pictures: Pictures, tokenizer: Tokenizer, questions: list[dict], k: int,
    temperatures: Sequence[float], max_new_tokens: int, batch_size: int, seed: int,
) -> Iterator[tuple[dict, list[str]]]:
    """Draw k answers to each question at each temperature.

    The answers come in turns: the first draw at each temperature, then the second draw, and
    so on.
    """
    # a batch takes as long as its longest answer; a known answer tells how long that may be
    questions = sorted(questions, key=lambda q: len(q.get("answer", "")))
    n_image_tokens = model.config.vit.n_tokens
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for start in tqdm(range(0, len(questions), batch_size), desc="sampling", disable=None):
        part = questions[start:start + batch_size]
        prompts = [prompt_of(q["question"], tokenizer, n_image_tokens) for q in part]
        images = pictures.get([q["image"] for q in part])            # (B, 3, S, S)
        drawn = []  # for each temperature B * k answers, k to each question in order
        for temperature in temperatures:
            drawn.append(generate(
                model, images, prompts, n_copies=k, stop=tokenizer.end,
                temperature=temperature, max_new_tokens=max_new_tokens, generator=generator,
            ))
        for i, q in enumerate(part):
            texts = []
            for place in range(k * i, k * (i + 1)):
                texts += [tokenizer.decode(answers[place]).strip() for answers in drawn]
            yield q, texts


def ask_pool(
    questions: list[dict], runs: Sequence[str], data: str | Path, k: int,
    temperatures: Sequence[float], max_new_tokens: int, batch_size: int,
    device: torch.device, seed: int,
) -> QuestionsWithAnswers:
    """Draw answers to each question and keep the first k that differ.

    The models take turns, so each contributes. A question may keep fewer than k answers;
    with only one there is nothing to rank.

    Args:
        runs: run folders of chatbots.
        data: the data folder that holds the pictures.
        k: answers to keep; each model draws k / (number of models), rounded up, at each
            temperature.
        temperatures: one should be high. Where a model is sure, its ordinary draws are all
            alike: a reward model then sees no ranking with, say, a refusal that should be
            there and is not, and cannot learn to prefer it.
        batch_size: questions that are answered at once.

    Raises:
        FileNotFoundError, ValueError: if a run has no checkpoint of a chatbot.
    """
    # all are read first: a missing run shall cost no sampling
    states = [checkpoint.load(name.strip(), ("sft", "ppo", "dpo")) for name in runs]
    share = math.ceil(k / len(states))
    drawn: dict[str, list[list[str]]] = {q["id"]: [] for q in questions}
    for state in states:
        tokenizer = Tokenizer.from_text(state["tokenizer"])
        model = vlm_from(state).to(device).eval()
        pictures = Pictures(data, model.vit.config.image_size)
        for q, texts in sample(model, pictures, tokenizer, questions, share, temperatures,
                               max_new_tokens, batch_size, seed):
            drawn[q["id"]].append(texts)
    out = []
    for q in questions:
        by_turns = chain.from_iterable(zip(*drawn[q["id"]]))
        # a dict, since a set would forget the order
        different = dict.fromkeys(text for text in by_turns if text)
        out.append((q, list(different)[:k]))
    return out


def answered(questions: list[dict], path: Path) -> QuestionsWithAnswers:
    """The questions that a file of rankings has answers to, with these answers.

    The rankings held out of that file, `<name>_val.jsonl` beside it, are read too.

    Raises:
        FileNotFoundError: if one of the two files does not exist.
        ValueError: if a line is not a record with responses, or a response is not a text.
    """
    answers_of = {}
    for split in (path.stem, f"{path.stem}_val"):
        for r in load_records(path.parent, split, need=("responses",)):
            if not all(isinstance(answer, str) for answer in r["responses"]):
                raise ValueError(f"{path}, record {r['id']}: a response is no text")
            answers_of[str(r["id"])] = r["responses"]
    out = []
    for q in questions:
        if str(q["id"]) in answers_of:
            out.append((q, answers_of[str(q["id"])]))
    return out
