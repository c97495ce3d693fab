"""Answers to be ranked: drawn from one chatbot or a pool of them, or taken from a file of rankings.

Source: a pool of models that answer: Silkie, arXiv:2312.10665, section 3. Used by: preferences.py.
"""

from collections.abc import Iterator, Sequence
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

Answered = list[tuple[dict, list[str]]]  # questions, each with its answers


def sample(
    model: VLM, pictures: Pictures, tokenizer: Tokenizer, questions: list[dict], k: int,
    temperatures: Sequence[float], max_new_tokens: int, batch_size: int, seed: int,
) -> Iterator[tuple[dict, list[str]]]:
    """Each question with k draws at each temperature, first one of each, then the next.

    Questions whose known answers are equally long are asked together, since a batch takes as long
    as its longest answer.
    """
    questions = sorted(questions, key=lambda q: len(q.get("answer", "")))
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for start in tqdm(range(0, len(questions), batch_size), desc="sampling", disable=None):
        part = questions[start:start + batch_size]
        prompts = [prompt_of(q["question"], tokenizer, model.config.vit.n_tokens) for q in part]
        images = pictures.get([q["image"] for q in part])
        drawn = [
            generate(model, images, prompts, n_copies=k, stop=tokenizer.end, temperature=t,
                     max_new_tokens=max_new_tokens, generator=generator)
            for t in temperatures
        ]
        texts = [tokenizer.decode(ids).strip() for turn in zip(*drawn) for ids in turn]
        each = len(texts) // len(part)
        for i, q in enumerate(part):
            yield q, texts[each * i:each * (i + 1)]


def ask_pool(
    questions: list[dict], runs: Sequence[str], data: str | Path, k: int,
    temperatures: Sequence[float], max_new_tokens: int, batch_size: int, device: torch.device,
    seed: int,
) -> Answered:
    """Each question with up to k different answers: the first different ones of all draws.

    Of several models each draws its share, and they take turns. A question that gets only one
    answer has nothing to rank.

    Args:
        runs: run folders of chatbots.
        data: the folder that holds the pictures.
        k: answers to keep; each model draws k / (number of models) of them, rounded up, at each
            temperature.
        temperatures: a hot one among them helps: where a model is sure, its own draws are all
            alike, but a reward model that has never seen a refusal left out, say, will not miss it.
        batch_size: questions at a time.

    Raises:
        FileNotFoundError, ValueError: for a run that cannot be asked.
    """
    states = [checkpoint.load(name.strip(), ("sft", "ppo", "dpo")) for name in runs]
    drawn: dict[str, list[list[str]]] = {q["id"]: [] for q in questions}
    for state in states:
        tokenizer = Tokenizer.from_text(state["tokenizer"])
        model = vlm_from(state).to(device).eval()
        pictures = Pictures(data, model.vit.config.image_size)
        for q, texts in sample(model, pictures, tokenizer, questions, -(-k // len(states)),
                               temperatures, max_new_tokens, batch_size, seed):
            drawn[q["id"]].append(texts)
    out = []
    for q in questions:
        by_turns = [t for turn in zip(*drawn[q["id"]]) for t in turn if t]
        out.append((q, list(dict.fromkeys(by_turns))[:k]))
    return out


def answered(questions: list[dict], path: Path) -> Answered:
    """Those of the questions that a file of rankings has answers to, or the file held out of it.

    Raises:
        FileNotFoundError: if there is no such file, or no `<name>_val.jsonl` beside it.
        ValueError: if a line is no record with responses, or one of them is no text.
    """
    said = {str(r["id"]): r["responses"] for name in (path.stem, f"{path.stem}_val")
            for r in load_records(path.parent, name, need=("responses",))}
    for key, answers in said.items():
        if not all(isinstance(a, str) for a in answers):
            raise ValueError(f"{path}, record {key}: a response is no text")
    return [(q, said[str(q["id"])]) for q in questions if str(q["id"]) in said]
