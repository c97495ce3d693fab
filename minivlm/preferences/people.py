"""Rankings that people make one by one: kept at once, undone if wanted, compared.

    {"id", "image", "kind", "question", "responses": [K], "ranking": [K ranks, 1 is best],
     "person"}

This is the layout of preferences.jsonl with the name of who ranked.
"""

import json
import os
import random
from collections import defaultdict
from itertools import combinations, islice
from pathlib import Path

import torch

from minivlm.chatbot import Chatbot
from minivlm.conversation import prompt_of
from minivlm.evaluation.raters import rating_of, true_ratings
from minivlm.evaluation.scene import has_scene
from minivlm.generate import generate
from minivlm.loading.batches import hash_seed
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta, load_records
from minivlm.metrics import Phrases
from minivlm.preferences.pool import different
from minivlm.preferences.rankings import check_ranking
from minivlm.running.files import parse_json

TEMPERATURES = (1.0, 1.5)  # of the draws; the second gives answers that are seldom given
MOST_DRAWN = 50  # questions for which answers are drawn until two of one differ
MOST = 100_000  # rankings of a file


class RankingFile:
    """A file to which each ranking is added as it is made.

    A line reaches the disk before `add` returns. If the process is killed while it writes,
    the line without an end is deleted when the file is read again. Several processes may use
    one file in turn: it is read again when another has changed it.

    Args:
        path: the file; it is made with the first ranking.

    Raises:
        ValueError: if the file holds a line that is no ranking of a person.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rankings: list[dict] = []
        self.size = 0  # of the file, when it was read or written
        self.refresh()

    def refresh(self) -> None:
        """Read the file, unless it is as it was left; raises as the class."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size == self.size:
            return
        self.rankings, content = [], self.path.read_bytes()
        *lines, last = content.split(b"\n")
        for n, line in enumerate(lines, 1):
            if line.strip():
                self.rankings.append(self.checked(line, f"{self.path}:{n}"))
        if last:
            torn = last.startswith(b'{"id": ') and not is_json(last)
            if not torn:  # an editor may have left the end away
                self.rankings.append(self.checked(last, f"{self.path}:{len(lines) + 1}"))
            self.replace()
        self.size = self.path.stat().st_size

    @staticmethod
    def checked(line: bytes, name: str) -> dict:
        """Read a line of the file; raises as the class."""
        r = parse_json(line, name)
        fault = fault_of(r) if isinstance(r, dict) else "no ranking"
        if fault:
            raise ValueError(f"{name}: {fault}")
        return r

    def replace(self) -> None:
        """Write all rankings anew; whenever the process is killed, the file is complete."""
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(r) + "\n" for r in self.rankings)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.size = self.path.stat().st_size

    def add(self, ranking: dict) -> None:
        """Add a ranking.

        Raises:
            ValueError: if it is none, if this person has ranked these answers before, or if
                the file is full.
        """
        self.refresh()
        fault = fault_of(ranking)
        if fault:
            raise ValueError(fault)
        if ranking["id"] in self.ranked_by(ranking["person"]):
            raise ValueError("ranked before")
        if len(self.rankings) >= MOST:
            raise ValueError(f"{self.path} holds {MOST:,} rankings; use another file")
        with self.path.open("ab") as file:
            file.write(json.dumps(ranking).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.size = self.path.stat().st_size
        self.rankings.append(ranking)

    def undo(self, person: str) -> dict:
        """Take back the last ranking of a person, and return it.

        Raises:
            ValueError: if there is none.
        """
        self.refresh()
        places = [i for i, r in enumerate(self.rankings) if r["person"] == person]
        if not places:
            raise ValueError("there is nothing to undo")
        undone = self.rankings.pop(places[-1])
        self.replace()
        return undone

    def ranked_by(self, person: str) -> set[str]:
        """The ids of the questions that a person has ranked answers to."""
        return {r["id"] for r in self.rankings if r["person"] == person}


def fault_of(r: dict) -> str:
    """Say why this is no ranking of a person; "" if it is one."""
    missing = {"id", "image", "question", "responses", "ranking", "person"} - r.keys()
    return f"no {min(missing)}" if missing else check_ranking(r)


def is_json(line: bytes) -> bool:
    """Whether a line is whole."""
    try:
        parse_json(line, "")
        return True
    except ValueError:
        return False


def agreement_of(a: list[float], b: list[float]) -> tuple[float, int]:
    """On how many pairs of answers two orders agree, of those that both decide.

    Args:
        a, b: for each answer a number; lower is better.

    >>> agreement_of([1, 2, 3], [1, 3, 2]), agreement_of([1, 1], [1, 2])
    ((2, 3), (0, 0))
    """
    agreed = decided = 0
    for i, j in combinations(range(len(a)), 2):
        ours, theirs = a[i] - a[j], b[i] - b[j]
        decided += bool(ours and theirs)
        agreed += ours * theirs > 0
    return agreed, decided


def agreement(
    rankings: list[dict], records: dict[str, dict], questions: dict[str, dict], phrases: Phrases
) -> dict[str, tuple[int, int]]:
    """Compare people's rankings with the scenes, and with each other.

    Args:
        rankings: those of a `RankingFile`.
        records: name of a picture -> its record, with its objects.
        questions: id -> question, as data/quiz.py writes them.
        phrases: those of meta.json.

    Returns:
        "Ann and the scene" -> of all pairs of answers that Ann and the true ratings put in an
        order: on how many they agree, and how many there are; without scenes nothing.
        "Ann and Bob" -> the same of two people who ranked the same answers.
    """
    found: dict[str, tuple[int, int]] = {}

    def count(name: str, a: list[float], b: list[float]) -> None:
        before = found.get(name, (0, 0))
        now = agreement_of(a, b)
        found[name] = before[0] + now[0], before[1] + now[1]

    for r in rankings:
        q, record = questions.get(r["id"]), records.get(r["image"])
        if q and record and has_scene(record):
            # rounded, or equal ratings could differ by the order of a sum
            worse = [-round(rating_of(true_ratings(answer, q, record, phrases)), 6)
                     for answer in r["responses"]]
            count(f"{r['person']} and the scene", r["ranking"], worse)
    same = defaultdict(list)  # question and answers -> its rankings
    for r in rankings:
        same[r["id"], *sorted(r["responses"])].append(r)
    for several in same.values():
        for one, other in combinations(sorted(several, key=lambda r: r["person"]), 2):
            theirs = dict(zip(other["responses"], other["ranking"]))
            count(f"{one['person']} and {other['person']}", one["ranking"],
                  [theirs[answer] for answer in one["responses"]])
    return found


class RankingTasks:
    """Answers to rank, the same for everybody, and the file that gets the rankings.

    Args:
        bot: draws the answers.
        data: the data folder.
        questions, records: its files of questions, and of records of their pictures.
        file: gets the rankings.
        k: most answers to a question.
        max_new_tokens: longest answer.
        seed: decides the order of the questions, and the answers.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or faulty.
    """

    def __init__(
        self, bot: Chatbot, data: str | Path, questions: str, records: str, file: str | Path,
        k: int, max_new_tokens: int, seed: int,
    ):
        self.bot = bot
        self.k = k
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        need = ("id", "image", "question")
        self.questions = load_records(data, questions, need=need, unique=True)
        random.Random(f"{seed} rank").shuffle(self.questions)
        self.records = {r["image"]: r for r in load_records(data, records, need=("image",))}
        self.phrases = load_meta(data).get("phrases", {})
        self.pictures = Pictures(data, bot.size, bot.mode)
        self.answers: dict[int, list[str]] = {}  # number of a question -> answers, as shown
        self.file = RankingFile(file)

    def draw(self, number: int) -> list[str]:
        """Draw up to k different answers to a question, half of them at a high temperature."""
        if number not in self.answers:
            q, bot = self.questions[number], self.bot
            seed = hash_seed(self.seed, number)
            prompt = prompt_of(q["question"], bot.tokenizer, bot.model.config.vit.n_tokens)
            image = self.pictures.get([q["image"]]).to(bot.device)   # (1, 3, S, S)
            drawn = []
            for temperature in TEMPERATURES:
                generator = torch.Generator(bot.device).manual_seed(seed)
                drawn.append(generate(
                    bot.model, image, [prompt], n_copies=self.k, stop=bot.stop,
                    max_new_tokens=self.max_new_tokens, temperature=temperature,
                    generator=generator,
                ))
            texts = [[bot.tokenizer.decode(ids).strip() for ids in some] for some in drawn]
            self.answers[number] = different(texts, self.k)
            random.Random(seed).shuffle(self.answers[number])
        return self.answers[number]

    def next_for(self, person: str, after: int) -> int | None:
        """The number of the next question behind `after` that a person can rank answers to.

        None if none of the next MOST_DRAWN will do: answers that are all alike cannot be
        ranked.
        """
        self.file.refresh()
        done = self.file.ranked_by(person)
        waiting = (n for n in range(max(0, after + 1), len(self.questions))
                   if self.questions[n]["id"] not in done)
        for number in islice(waiting, MOST_DRAWN):
            if len(self.draw(number)) > 1:
                return number
        return None

    def add(self, person: str, number: int, answers: list[str], ranks: list[int]) -> None:
        """Keep a ranking: a rank for each answer, in the order in which they were shown.

        Raises:
            ValueError: as `RankingFile.add`, or if these are not the answers to rank, as when
                other chatbots are shown by now.
        """
        if not 0 <= number < len(self.questions) or answers != self.draw(number):
            raise ValueError("these answers are not ranked any more; load the page again")
        q = self.questions[number]
        self.file.add({
            "id": q["id"], "image": q["image"], "kind": q.get("kind", ""),
            "question": q["question"], "responses": answers, "ranking": ranks, "person": person,
        })

    def undo(self, person: str) -> int:
        """Take back a person's last ranking; return the number of its question.

        Raises:
            ValueError: if there is none.
        """
        key = self.file.undo(person)["id"]
        return next((i for i, q in enumerate(self.questions) if q["id"] == key), 0)

    def agreement(self) -> dict[str, tuple[int, int]]:
        """As the function `agreement`."""
        self.file.refresh()
        questions = {q["id"]: q for q in self.questions}
        return agreement(self.file.rankings, self.records, questions, self.phrases)
