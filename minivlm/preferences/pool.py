"""Collects answers to be ranked: draws them from chatbots, or reads them from a file.

Source: Silkie, Li et al. 2023, arXiv:2312.10665, section 3: a pool of models answers each
question.
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
from minivlm.loading.models import fit_of, vlm_from
from minivlm.loading.prepared import load_records
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint
from minivlm.tokenizer import CHATBOTS, Tokenizer
from minivlm.vlm import VLM

QuestionsWithAnswers = list[tuple[dict, list[str]]]


def sample(
    model: VLM, pictures: Pictures, tokenizer: Tokenizer, questions: list[dict], k: int,
    temperatures: Sequence[float], max_new_tokens: int, batch_size: int, seed: int,
) -> Iterator[tuple[dict, list[str]]]:
    """Draw k answers to each question at each temperature.

    Yields:
        a question and its answers: the first draw at each temperature, then the second draw
        at each, and so on. The questions come in another order than they were given.
    """
    # a batch takes as long as its longest answer, so questions share a batch whose known
    # answers are similarly long
    questions = sorted(questions, key=lambda q: len(q.get("answer", "")))
    n_image_tokens = model.config.vit.n_tokens
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for start in tqdm(range(0, len(questions), batch_size), desc="sampling", disable=None):
        part = questions[start:start + batch_size]
        prompts = [prompt_of(q["question"], tokenizer, n_image_tokens) for q in part]
        images = pictures.get([q["image"] for q in part])            # (B, 3, S, S)
        drawn = []  # for each temperature B * k answers: k to each question, in order
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

    The models' answers alternate, so that answers of each model are kept. A question may
    get fewer than k different answers; a single answer cannot be ranked.

    Args:
        runs: run folders of chatbots.
        data: the data folder that holds the pictures.
        k: answers to keep; each model draws k / (number of models), rounded up, at each
            temperature.
        temperatures: one of them should be high. Where a model is sure, its draws at an
            ordinary temperature are all alike. If it never refuses a question, for
            instance, then no ranking compares a refusal with an answer, and a reward model
            cannot learn to prefer the refusal.
        max_new_tokens: longest answer.
        batch_size: questions that are answered at once.
        seed: of the draws.

    Returns:
        each question with its answers, in the order of `questions`.

    Raises:
        FileNotFoundError, ValueError: if a run folder has no checkpoint of a chatbot.
    """
    # all checkpoints are read before any sampling, which takes minutes
    states = [load_state(name.strip(), CHATBOTS) for name in runs]
    share = math.ceil(k / len(states))
    drawn: dict[str, list[list[str]]] = {q["id"]: [] for q in questions}
    for state in states:
        tokenizer = checkpoint.tokenizer_of(state)
        model = vlm_from(state).to(device).eval()
        pictures = Pictures(data, model.vit.config.image_size, fit_of(state))
        for q, texts in sample(model, pictures, tokenizer, questions, share, temperatures,
                               max_new_tokens, batch_size, seed):
            drawn[q["id"]].append(texts)
    out = []
    for q in questions:
        out.append((q, different(drawn[q["id"]], k)))
    return out


def different(drawn: Sequence[Sequence[str]], k: int) -> list[str]:
    """Return the first k texts that differ, taken in turn from several lists; none is empty.

    >>> different([["a", "b"], ["a", ""], ["c", "d"]], 3)
    ['a', 'c', 'b']
    """
    by_turns = chain.from_iterable(zip(*drawn))
    # a dict keeps the order, which a set would not
    return list(dict.fromkeys(text for text in by_turns if text))[:k]


def answered(questions: list[dict], path: Path) -> QuestionsWithAnswers:
    """Read the answers to questions from an older file of rankings.

    Its held-out rankings, `<name>_val.jsonl` beside it, are read too. Questions to which
    neither file has answers are left out.

    Raises:
        FileNotFoundError: if one of the two files does not exist.
        ValueError: if a line is no record with responses, or a response is no text.
    """
    def check(r: dict) -> str:
        is_text = all(isinstance(answer, str) for answer in r["responses"])
        return "" if is_text else "a response is no text"

    answers_of = {}
    for split in (path.stem, f"{path.stem}_val"):
        for r in load_records(path.parent, split, need=("responses",), check=check):
            answers_of[str(r["id"])] = r["responses"]
    out = []
    for q in questions:
        if str(q["id"]) in answers_of:
            out.append((q, answers_of[str(q["id"])]))
    return out
