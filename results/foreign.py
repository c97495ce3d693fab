"""Put questions of somebody who has seen no template to a chatbot; write docs/foreign.md.

    python results/foreign.py [runs/dpo] [data/book/prepared]

Reads results/foreign.json, a list of {"image": "val.npy#5", "question": "..."}, and asks
each question in a new conversation. The answers are written into that file, so that a
person can judge them: "verdict" is "sensible", "wrong" or "wrong refusal". A verdict holds
for the answer that it was given to. If the answer changes, the verdict is deleted, and the
page says "not judged" until somebody judges again; then run the script once more.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from asking import load_answerer
from minivlm.loading.images import Pictures, enlarged
from minivlm.loading.prepared import load_meta

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT / "results" / "foreign.json"
PAGE = ROOT / "docs" / "foreign.md"
VERDICTS = ("sensible", "wrong", "wrong refusal")
NOT_JUDGED = "not judged"
SIDE = 300  # pixels of a picture on the page
INTRODUCTION = """# Questions from outside

Written by `python results/foreign.py`. Somebody who had seen these {n_pictures} pictures,
but none of the phrasings that the chatbot learns from, wrote {n} questions. Each was asked
in a new conversation. A person judged the answers.
"""


def check_questions(entries: list[dict]) -> None:
    """Refuse questions that could not be asked, and verdicts that nobody could count.

    Raises:
        ValueError: naming the number of the first faulty entry.
    """
    for number, entry in enumerate(entries):
        for key in ("image", "question"):
            if not isinstance(entry.get(key), str) or not entry[key].strip():
                raise ValueError(f"question {number} has no {key}, or no text there")
        verdict = entry.get("verdict", "")
        if verdict and verdict not in VERDICTS:
            raise ValueError(
                f"question {number} has the verdict {verdict!r}, expected one of "
                f"{', '.join(VERDICTS)}"
            )


def answered(entries: list[dict], answers: list[str]) -> list[dict]:
    """The questions with their answers; a verdict on another answer is left out."""
    new = []
    for entry, answer in zip(entries, answers):
        kept = {"image": entry["image"], "question": entry["question"], "answer": answer}
        if entry.get("verdict") and entry.get("answer") == answer:
            kept["verdict"] = entry["verdict"]
        new.append(kept)
    return new


def as_cell(text: str) -> str:
    """A text as the cell of a table."""
    return text.replace("|", "\\|").replace("\n", "<br>")


def write_page(entries: list[dict]) -> str:
    """The page: the pictures side by side, how many answers are sensible, all answers."""
    images = list(dict.fromkeys(entry["image"] for entry in entries))
    counts = Counter(entry.get("verdict", NOT_JUDGED) for entry in entries)
    numbers = [f"{counts[v]} {v}" for v in (*VERDICTS, NOT_JUDGED) if counts[v]]
    pictures = [f"![picture {i}](foreign/{i}.png)" for i in range(len(images))]
    lines = [
        INTRODUCTION.format(n_pictures=len(images), n=len(entries)),
        f"Of {len(entries)} answers: {', '.join(numbers)}.",
        "",
        "| " + " | ".join(f"picture {i}" for i in range(len(images))) + " |",
        "|---" * len(images) + "|",
        "| " + " | ".join(pictures) + " |",
        "",
        "| picture | question | answer | verdict |",
        "|---|---|---|---|",
    ]
    for entry in entries:
        cells = [
            str(images.index(entry["image"])), as_cell(entry["question"]),
            as_cell(entry["answer"]), entry.get("verdict", NOT_JUDGED),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def save_pictures(images: list[str], data: str, folder: Path) -> None:
    """Save pictures, enlarged, as 0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = Pictures(data, load_meta(data)["image_size"]).pixels(images)
    for i, picture in enumerate(pixels):
        enlarged(picture, SIDE).save(folder / f"{i}.png")


def main(run: str = "runs/dpo", data: str = "data/book/prepared") -> None:
    """Ask all questions, and write answers, page and pictures."""
    if not QUESTIONS.is_file():
        sys.exit(f"foreign.py: error: no questions at {QUESTIONS}")
    entries = json.loads(QUESTIONS.read_text("utf-8"))
    check_questions(entries)
    entries = answered(entries, load_answerer(run, data)(entries))
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    QUESTIONS.write_text(text + "\n", "utf-8")
    PAGE.write_text(write_page(entries), "utf-8")
    images = list(dict.fromkeys(entry["image"] for entry in entries))
    save_pictures(images, data, PAGE.with_suffix(""))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main(*sys.argv[1:])
