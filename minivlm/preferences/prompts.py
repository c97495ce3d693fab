"""Makes prompts for the policy and the reward model from the questions of a data folder.

    prompts = Prompts(folder, "train", policy, tokenizer, facts)
    batch = prompts.batch(questions, seed)
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minivlm.conversation import longest_prompt, prompt_of
from minivlm.evaluation.correctness import check_names
from minivlm.evaluation.raters import rating_of, true_ratings
from minivlm.evaluation.scene import has_scene, things_of
from minivlm.loading.batches import places_that_fit
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
        meta = load_meta(folder)
        self.phrases = meta.get("phrases", {})
        self.pictures = Pictures(folder, self.config.vit.image_size, meta["fit"])
        # whether every answer has a true score; `load` finds questions without a scene
        self.has_scenes = bool(self.phrases)

    def load(self, split: str, max_new_tokens: int, skip_long: bool = False) -> list[dict]:
        """Read and check the questions in `<folder>/<split>.jsonl`.

        Args:
            max_new_tokens: longest answer.
            skip_long: leave out questions that do not fit the context with such an answer.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a question's picture has no record, or one with a damaged box; if
                facts are needed and the record has no captions. The message names file and
                line. Or as `places_that_fit`.
        """
        def check(q: dict) -> str:
            if q["image"] not in self.records:
                return f"no picture {q['image']} in {self.split}"
            fault = check_names(q, self.phrases) if self.phrases else ""
            if fault:
                return fault
            record = self.records[q["image"]]
            if self.facts and not record.get("captions"):
                return "no captions to serve as facts"
            try:
                if self.phrases and has_scene(record):
                    things_of(record)  # refused now, not at the first true score
            except ValueError as error:
                return f"{self.split}: {error}"
            return ""

        need = ("image", "question", "kind")
        questions = load_records(self.folder, split, need, check=check)
        lengths = []  # no model reads a longer prompt than the reward model
        for q in questions:
            n = longest_prompt(
                q["question"], self.tokenizer, self.config.vit.n_tokens, self.facts_of(q)
            )
            lengths.append(n + max_new_tokens)
        kept = places_that_fit(
            questions, lengths, self.config.gpt.block_size, skip_long, split,
            included=f"an answer of {max_new_tokens}",
        )
        questions = [questions[i] for i in kept]
        known = all(has_scene(self.records[q["image"]]) for q in questions)
        self.has_scenes = self.has_scenes and known
        return questions

    def prompt(self, q: dict, facts: list[str]) -> list[int]:
        """The ids before the answer to a question, with facts before the question."""
        return prompt_of(q["question"], self.tokenizer, self.config.vit.n_tokens, facts)

    def facts_of(self, q: dict) -> list[str]:
        """The captions that the reward model reads before a question; [] without facts."""
        return self.records[q["image"]]["captions"] if self.facts else []

    def reward_prompt(self, q: dict, generator: torch.Generator) -> list[int]:
        """The ids that the reward model reads before an answer.

        Args:
            generator: decides the order of the facts.
        """
        captions = self.facts_of(q)
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
        """The true score of each answer, from 1 to 5; [] unless `has_scenes`.

        True scores are for the log only, and no model may learn from them: where people
        rank the answers there are no true scores, and a reward model has to do without.
        """
        if not self.has_scenes:
            return []
        scores = []
        for answer, q in zip(answers, questions):
            scene = self.records[q["image"]]
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
