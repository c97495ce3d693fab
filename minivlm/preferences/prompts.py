"""Questions of a data folder, made ready to be answered by a policy and judged by a reward model.

    prompts = Prompts(folder, "train", policy, tokenizer, facts)
    batch = prompts.batch(questions, seed)

Used by: rollout.py, train_ppo.py, train_dpo.py.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minivlm.conversation import prompt_of
from minivlm.evaluation.raters import rating_of, true_ratings
from minivlm.loading.images import Pictures, contact_sheet
from minivlm.loading.prepared import load_meta, load_records
from minivlm.rollout import PromptBatch
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM


class Prompts:
    """Questions of a data folder, with the records of the pictures that they are about.

    Args:
        folder: the data folder.
        split: which file of it holds the pictures' records.
        policy: who is asked.
        tokenizer: the policy's and the reward model's.
        facts: let the reward model read the pictures' true captions, in random order.
    """

    def __init__(
        self, folder: str | Path, split: str, policy: VLM, tokenizer: Tokenizer, facts: bool
    ):
        self.folder, self.split, self.facts = folder, split, facts
        self.policy, self.tokenizer = policy, tokenizer
        self.records = {r.get("image"): r for r in load_records(folder, split)}
        self.pictures = Pictures(folder, policy.config.vit.image_size)
        self.phrases = load_meta(folder).get("phrases", {})

    def load(self, split: str, max_new_tokens: int) -> list[dict]:
        """Read `<folder>/<split>.jsonl`, questions that leave room for their answers.

        Raises:
            ValueError: if a question is about an unknown picture, or one without captions where
                facts are needed, or is too long; with its id.
        """
        questions = load_records(self.folder, split, ("image", "question", "kind"))
        room = self.policy.gpt.config.block_size - max_new_tokens
        for q in questions:
            if q["image"] not in self.records:
                raise ValueError(
                    f"{split}, record {q['id']}: no picture {q['image']} in {self.split}")
            if self.facts and not self.records[q["image"]].get("captions"):
                raise ValueError(f"{split}, record {q['id']}: no captions to serve as facts")
            n = len(self.judged(q, torch.Generator()))
            if n > room:
                raise ValueError(
                    f"{split}, record {q['id']}: {n} tokens and an answer of {max_new_tokens} are "
                    f"more than the context of {self.policy.gpt.config.block_size}")
        return questions

    def judged(self, q: dict, generator: torch.Generator) -> list[int]:
        """What the reward model reads before an answer."""
        captions = self.records[q["image"]]["captions"] if self.facts else []
        order = torch.randperm(len(captions), generator=generator).tolist()
        facts = [captions[i] for i in order]
        return prompt_of(q["question"], self.tokenizer, self.policy.config.vit.n_tokens, facts)

    def batch(self, questions: list[dict], seed: int) -> PromptBatch:
        """Render questions and load their pictures; equal seeds give equal batches and answers."""
        prompts = [prompt_of(q["question"], self.tokenizer, self.policy.config.vit.n_tokens) for q in questions]
        judged, generator = prompts, torch.Generator().manual_seed(seed)
        if self.facts:
            judged = [self.judged(q, generator) for q in questions]
        images = self.pictures.get([q["image"] for q in questions])
        return PromptBatch(questions, images, prompts, judged, seed)

    def true_scores(self, questions: list[dict], said: list[str]) -> list[float]:
        """How good answers are by what is known of the pictures; [] where nobody knows.

        Nothing may learn from it: it is what the reward model stands in for.

        Args:
            rate: (answer, question, record, phrases) -> ratings, minivlm/evaluation/raters.py's true_ratings.
        """
        scenes = [self.records[q["image"]] for q in questions]
        if not self.phrases or not all(scene.get("objects") for scene in scenes):
            return []
        return [
            rating_of(true_ratings(answer, q, scene, self.phrases))
            for answer, q, scene in zip(said, questions, scenes)
        ]

    def sheet(
        self, questions: list[dict], said: list[str], scores: Tensor | None, n: int = 12
    ) -> Image.Image:
        """The first n pictures with question, answer and score below, to be looked at."""
        scores = [""] * n if scores is None else [f"score {s:.2f}" for s in scores.tolist()]
        texts = [[q["question"], *(f"> {line}" for line in a.splitlines()), s]
                 for q, a, s in zip(questions[:n], said, scores)]
        return contact_sheet(self.pictures.pixels([q["image"] for q in questions[:n]]), texts)
