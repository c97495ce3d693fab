"""Questions of a data folder, made ready for a policy and a reward model.

    prompts = Prompts(folder, "train", policy, tokenizer, facts)
    batch = prompts.batch(questions, seed)
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

N_SAMPLES = 12  # pictures on a sheet of samples: three rows of four


class Prompts:
    """Questions of a data folder, with the records of the pictures that they ask about.

    Args:
        folder: the data folder.
        split: which file of it holds the records of the pictures.
        policy: the model that answers; decides image size, image tokens and context.
        tokenizer: the policy's and the reward model's.
        facts: whether the reward model also reads the pictures' true captions, in random
            order.
    """

    def __init__(
        self, folder: str | Path, split: str, policy: VLM, tokenizer: Tokenizer, facts: bool
    ):
        self.folder = folder
        self.split = split
        self.facts = facts
        self.tokenizer = tokenizer
        self.config = policy.config
        self.records = {r.get("image"): r for r in load_records(folder, split)}
        self.pictures = Pictures(folder, self.config.vit.image_size)
        self.phrases = load_meta(folder).get("phrases", {})

    def load(self, split: str, max_new_tokens: int) -> list[dict]:
        """Read the questions in `<folder>/<split>.jsonl`.

        Raises:
            ValueError: with the question's id, if its picture has no record, if facts are
                needed and the record has no captions, or if question and answer may exceed
                the context.
        """
        questions = load_records(self.folder, split, ("image", "question", "kind"))
        for q in questions:
            name = f"{split}, record {q['id']}"
            if q["image"] not in self.records:
                raise ValueError(f"{name}: no picture {q['image']} in {self.split}")
            if self.facts and not self.records[q["image"]].get("captions"):
                raise ValueError(f"{name}: no captions to serve as facts")
            # the longest prompt of all models; the facts' order does not change its length
            n = len(self.reward_prompt(q, torch.Generator()))
            if n + max_new_tokens > self.config.gpt.block_size:
                raise ValueError(
                    f"{name}: {n} tokens and an answer of {max_new_tokens} are more than "
                    f"the context of {self.config.gpt.block_size}"
                )
        return questions

    def prompt(self, q: dict, facts: list[str]) -> list[int]:
        """The ids before an answer to a question."""
        return prompt_of(q["question"], self.tokenizer, self.config.vit.n_tokens, facts)

    def reward_prompt(self, q: dict, generator: torch.Generator) -> list[int]:
        """What the reward model reads before an answer."""
        captions = self.records[q["image"]]["captions"] if self.facts else []
        # at random, so that no place in the list comes to mean anything
        order = torch.randperm(len(captions), generator=generator).tolist()
        return self.prompt(q, [captions[i] for i in order])

    def batch(self, questions: list[dict], seed: int) -> PromptBatch:
        """Render questions and load their pictures.

        Args:
            seed: decides the order of the facts, and later the policy's answers.
        """
        prompts = [self.prompt(q, []) for q in questions]
        reward_prompts = prompts
        if self.facts:
            generator = torch.Generator().manual_seed(seed)
            reward_prompts = [self.reward_prompt(q, generator) for q in questions]
        images = self.pictures.get([q["image"] for q in questions])  # (B, 3, S, S)
        return PromptBatch(questions, images, prompts, reward_prompts, seed)

    def true_scores(self, questions: list[dict], answers: list[str]) -> list[float]:
        """Rate answers by what the pictures really show; [] if no scenes are known.

        For the log only. No model may learn from true scores: with people's preferences
        there are none, and the reward model has to replace them.
        """
        scenes = [self.records[q["image"]] for q in questions]
        if not self.phrases or not all(scene.get("objects") for scene in scenes):
            return []
        scores = []
        for answer, q, scene in zip(answers, questions, scenes):
            scores.append(rating_of(true_ratings(answer, q, scene, self.phrases)))
        return scores

    def sheet(
        self, questions: list[dict], answers: list[str], scores: Tensor | None
    ) -> Image.Image:
        """Draw the first pictures, each with its question, answer and score.

        Args:
            scores: (B,) of the reward model, or None.
        """
        shown = questions[:N_SAMPLES]
        texts = []
        for i, q in enumerate(shown):
            lines = [f"> {line}" for line in answers[i].splitlines()]
            # an empty paragraph keeps sheets with and without scores equally high
            score = "" if scores is None else f"score {scores[i].item():.2f}"
            texts.append([q["question"], *lines, score])
        return contact_sheet(self.pictures.pixels([q["image"] for q in shown]), texts)
