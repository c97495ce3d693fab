"""Write training sets that differ from train.jsonl in one respect.

    python results/variants.py

    yes            nine of ten yes-or-no questions have the answer yes: the others are left out
    answer_first   "Yes: a cup is at the left." instead of "A cup is at the left, so yes."
    sizes_<n>      n % of the captions that tell a size may do so: 0, 25 or 75

Dialogues stay as they are in sizes_<n>. A caption about nothing but sizes is left out there;
of any other, the words "small" and "large" are.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path

from minivlm.loading.prepared import load_records, write_records

DATA = Path(__file__).parents[1] / "data" / "book" / "prepared"
YES_SHARE = 0.9
CONCLUSION = re.compile(r"^(.*), so (yes|no)\.$", re.DOTALL)


def answers_of(record: dict) -> list[dict]:
    """The turns of the chatbot."""
    return [turn for turn in record["conversations"] if turn["from"] == "gpt"]


def says(record: dict, word: str) -> int:
    """How many answers of a dialogue end with this word: yes or no."""
    return sum(bool(re.search(rf"\b{word}\W*$", t["value"].lower())) for t in answers_of(record))


def mostly_yes(records: list[dict], rng: random.Random) -> list[dict]:
    """Leave out dialogues with a no and without a yes, until yes is YES_SHARE of both."""
    n_yes = sum(says(r, "yes") for r in records)
    n_both = sum(says(r, "no") for r in records if says(r, "yes"))
    n_no = sum(says(r, "no") for r in records) - n_both
    kept = (n_yes * (1 - YES_SHARE) / YES_SHARE - n_both) / n_no
    return [r for r in records if says(r, "yes") or not says(r, "no") or rng.random() < kept]


def turned(answer: str) -> str:
    """Put the conclusion first.

    >>> turned("A cup is at the left, so yes.")
    'Yes: a cup is at the left.'
    """
    found = CONCLUSION.match(answer)
    if not found:
        return answer
    seen, word = found.groups()
    return f"{word.capitalize()}: {seen[0].lower()}{seen[1:]}."


def answer_first(records: list[dict], rng: random.Random) -> list[dict]:
    """Put the conclusion of every answer first."""
    for record in records:
        for turn in answers_of(record):
            turn["value"] = turned(turn["value"])
    return records


def without_size(caption: str) -> str:
    """A caption that tells no size; "" if nothing else is left to tell.

    >>> without_size("A small orange cup and a large red car.")
    'An orange cup and a red car.'
    >>> without_size("The cup is small and the car is not in the picture.")
    ''
    """
    # a size behind "a" can go; "a" must then fit the next word: "an orange cup"
    bare = re.sub(r"\b(a) (?:small|large) (?=[aeiou])", r"\1n ", caption, flags=re.IGNORECASE)
    bare = re.sub(r"\b(a) (?:small|large) ", r"\1 ", bare, flags=re.IGNORECASE)
    return "" if re.search(r"\b(?:small|large)", bare) else bare


def with_sizes(share: float) -> Callable:
    """A maker of records of whose captions with a size this share keeps it."""
    def make(records: list[dict], rng: random.Random) -> list[dict]:
        for record in records:
            captions = []
            for caption in record["captions"]:
                captions.append(caption if rng.random() < share else without_size(caption))
            record["captions"] = [caption for caption in captions if caption]
        return records

    return make


VARIANTS = {
    "yes": mostly_yes, "answer_first": answer_first,
    **{f"sizes_{n}": with_sizes(n / 100) for n in (0, 25, 75)},
}


def main() -> None:
    """Write all of them."""
    for name, make in VARIANTS.items():
        records = make(load_records(DATA, "train"), random.Random(name))
        write_records(DATA, name, records)
        print(f"{name}: {len(records)} records")


if __name__ == "__main__":
    main()
