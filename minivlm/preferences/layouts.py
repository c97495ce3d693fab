"""Rankings and pairs in the layouts that other projects publish or read.

    read_ranked     rankings in our layout, LLaVA-RLHF's, RLHF-V's or RLAIF-V's -> ours
    trl_of          a pair -> messages and picture files, as TRL's trainers take them

Source: llava-rlhf/LLaVA-RLHF, data_utils_rm.py; the data cards of RLHF-V and RLAIF-V;
huggingface/trl, dataset formats.
"""

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from minivlm.conversation import IMAGE_MARK
from minivlm.loading.images import Pictures
from minivlm.running.files import read_lines
from minivlm.running.options import printable

# --- reading ---


def read_ranked(path: str | Path, skipped: Counter) -> list[dict]:
    """Read rankings in any of four layouts, and return them in ours.

        ours         "question", "responses", "ranking"
        LLaVA-RLHF   "conversations", "output_1", "output_2", "preference": 1 or 2
        RLHF-V       "text": an object with "question", "chosen", "rejected", or its JSON
        RLAIF-V      "question", "chosen", "rejected"

    Args:
        skipped: counts, by reason, the records that cannot be used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no JSON object, or if no record can be used.
    """
    rankings = []
    faults = []
    for number, (line, record) in enumerate(read_lines(path), 1):
        try:
            rankings.append(ranked_of(record, f"record {number}"))
        except ValueError as reason:
            skipped[str(reason)] += 1
            faults.append(f"{line}: {reason}")
    if faults and not rankings:
        raise ValueError(f"{path} holds no ranking that can be used; {faults[0]}")
    return rankings


def ranked_of(r: dict, name: str) -> dict:
    """Turn one published record into our layout.

    Args:
        name: the id that it gets if it has none.

    Raises:
        ValueError: if it cannot be used; the error is the reason.
    """
    try:
        question, ranked = _read(r)
    # all that a record in another layout can raise; RecursionError: the JSON in "text" is
    # nested too deeply
    except (LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("record in no known layout") from None
    if not isinstance(question, str):
        raise ValueError("record in no known layout")
    # `prompt_of` and `pairs_of` put the mark back
    question = question.replace(IMAGE_MARK, "").strip()
    if not question:
        raise ValueError("no question")
    ids = [r[key] for key in ("id", "idx") if r.get(key) is not None]
    return {
        "id": printable(str(ids[0] if ids else name), keep=""), "image": image_of(r),
        "question": question, **ranked,
    }


def image_of(r: dict) -> str:
    """The name of a published record's picture; "" if it has none.

    Tables of RLHF-V and RLAIF-V hold {"path", "bytes"} as "image", and "image_path".
    """
    image = r.get("image")
    if isinstance(image, dict):
        image = image.get("path")
    names = [n for n in (image, r.get("image_path")) if isinstance(n, str) and n]
    return names[0] if names else ""


def _read(r: dict) -> tuple[object, dict]:
    """The question of a published record, and its answers with their ranks."""
    if "output_1" in r:
        if r["preference"] not in (1, 2):
            raise ValueError("preference that is neither 1 nor 2")
        asked = [turn["value"] for turn in r["conversations"] if turn["from"] == "human"]
        if len(asked) != 1:
            # people ranked answers to the last question; our rankings have no earlier turns
            raise ValueError("conversation without exactly one question")
        answers = [r["output_1"]["value"], r["output_2"]["value"]]
        # one rank for each answer, not a list of the answers from best to worst
        ranks = [1, 2] if r["preference"] == 1 else [2, 1]
        return asked[0], {"responses": answers, "ranking": ranks}
    if "responses" in r:
        ranked = {"responses": r["responses"], "ranking": r["ranking"]}
        if r.get("ratings"):
            ranked["ratings"] = r["ratings"]
        if isinstance(r.get("kind"), str):
            ranked["kind"] = r["kind"]
        return r["question"], ranked
    pair = r.get("text") or r
    if isinstance(pair, str):
        try:
            pair = json.loads(pair)
        except ValueError:
            raise ValueError("text that is no JSON") from None
    answers = [pair["chosen"], pair["rejected"]]
    return pair["question"], {"responses": answers, "ranking": [1, 2]}


# --- writing ---


def trl_of(pair: dict, files: dict[str, str]) -> dict:
    """Turn a pair into TRL's layout: pictures and messages.

    Args:
        pair: as `pairs_of` makes it: one question, and the answers as texts.
        files: packed picture -> its file, as `unpack` returns them.
    """
    def message(role: str, text: str, *pictures: dict) -> list[dict]:
        return [{"role": role, "content": [*pictures, {"type": "text", "text": text}]}]

    question = pair["conversations"][0]["value"].replace(IMAGE_MARK, "").strip()
    return {
        "images": [files.get(pair["image"], pair["image"])],
        "prompt": message("user", question, {"type": "image"}),
        "chosen": message("assistant", pair["chosen"]),
        "rejected": message("assistant", pair["rejected"]),
    }


def unpack(images: set[str], pictures: Pictures, out: Path) -> dict[str, str]:
    """Save packed pictures as PNG files beside `out`, for programs that read files only.

    Args:
        images: names of pictures, packed or not; those that are files already are skipped.
        pictures: give the pixels.
        out: the file that will name the pictures.

    Returns:
        packed picture -> its file, relative to the folder of `out`.
    """
    files = {}
    for image in sorted(images):
        pack, packed, row = image.partition(".npy#")
        if packed:
            name = f"{out.stem}_pictures/{pack}_{row}.png"
            (out.parent / name).parent.mkdir(exist_ok=True)
            Image.fromarray(pictures.pixels([image])[0]).save(out.parent / name)
            files[image] = name
    return files
