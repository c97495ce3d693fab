"""Makes prompts for the policy and the reward model from the questions of a data folder.

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
    """Makes prompts from questions; knows the records of the pictures that they ask about.

    Args:
        folder: the data folder.
        split: the file of the data folder that holds the records of the pictures.
        policy: the model that answers; it decides the size of pictures, the number of image
            tokens and the context.
        tokenizer: of both the policy and the reward model.
        facts: whether the reward model also reads the true captions of a picture, in random
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
        """Read and check the questions in `<folder>/<split>.jsonl`.

        Args:
            max_new_tokens: longest answer.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a question's picture has no record, if facts are needed and the
                record has no captions, or if prompt and answer may be longer than the
                context; with the question's id.
        """
        questions = load_records(self.folder, split, ("image", "question", "kind"))
        for q in questions:
            name = f"{split}, record {q['id']}"
            if q["image"] not in self.records:
                raise ValueError(f"{name}: no picture {q['image']} in {self.split}")
            if self.facts and not self.records[q["image"]].get("captions"):
                raise ValueError(f"{name}: no captions to serve as facts")
            # no model reads a longer prompt; the order of facts does not change its length
            n = len(self.reward_prompt(q, torch.Generator()))
            if n + max_new_tokens > self.config.gpt.block_size:
                raise ValueError(
                    f"{name}: {n} tokens and an answer of {max_new_tokens} are more than "
                    f"the context of {self.config.gpt.block_size}"
                )
        return questions

    def prompt(self, q: dict, facts: list[str]) -> list[int]:
        """The ids before the answer to a question, with facts before the question."""
        return prompt_of(q["question"], self.tokenizer, self.config.vit.n_tokens, facts)

    def reward_prompt(self, q: dict, generator: torch.Generator) -> list[int]:
        """The ids that the reward model reads before an answer.

        Args:
            generator: decides the order of the facts.
        """
        captions = self.records[q["image"]]["captions"] if self.facts else []
        # in random order, so that nothing can be learned from the place of a fact
        order = torch.randperm(len(captions), generator=generator).tolist()
        return self.prompt(q, [captions[i] for i in order])

    def batch(self, questions: list[dict], seed: int) -> PromptBatch:
        """Make the prompts of B questions and load their pictures.

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
        """The true score of each answer, from 1 to 5; [] if the data have no scenes.

        True scores are for the log only, and no model may learn from them: where people
        rank the answers there are no true scores, and a reward model has to do without.
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
        """Draw a sheet of the first pictures, each with its question, answer and score.

        Args:
            scores: (B,) by the reward model; None shows no scores.
        """
        shown = questions[:N_SAMPLES]
        texts = []
        for i, q in enumerate(shown):
            lines = [f"> {line}" for line in answers[i].splitlines()]
            score = "" if scores is None else f"score {scores[i].item():.2f}"
            texts.append([q["question"], *lines, score])
        return contact_sheet(self.pictures.pixels([q["image"] for q in shown]), texts)
