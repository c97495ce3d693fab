"""Rankings and pairs in the layouts that other projects publish or read.

    read_ranked     rankings in our layout, LLaVA-RLHF's or RLHF-V's -> ours
    trl_of          a pair -> messages and picture files, as TRL's trainers take them

Source: llava-rlhf/LLaVA-RLHF, data_utils_rm.py; RLHF-V's data card; huggingface/trl,
dataset formats.
"""

import json
from pathlib import Path

from PIL import Image

from minivlm.conversation import IMAGE_MARK
from minivlm.loading.images import Pictures
from minivlm.running.files import read_lines

# --- reading ---


def read_ranked(path: str | Path) -> list[dict]:
    """Read rankings in any of three layouts, and return them in ours.

        ours         "question", "responses", "ranking"
        LLaVA-RLHF   "conversations", "output_1", "output_2", "preference": 1 or 2
        RLHF-V       "text": an object with "question", "chosen", "rejected", or its JSON

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is in none of these layouts; the error names file and line.
    """
    rankings = []
    for number, (line, record) in enumerate(read_lines(path), 1):
        try:
            rankings.append(ranked_of(record, f"record {number}"))
        # all that a record in another layout can raise; RecursionError: the JSON in "text"
        # is nested too deeply
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(f"{line} is no ranking: {e}") from None
    return rankings


def ranked_of(r: dict, name: str) -> dict:
    """Turn one published record into our layout.

    Args:
        name: the id that it gets if it has none.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: if it is in no known layout.
    """
    ranked = {"id": str(r.get("id", r.get("idx", name))), "image": str(r.get("image", ""))}
    if "output_1" in r:
        if r["preference"] not in (1, 2):
            raise ValueError(f"preference {r['preference']!r} is neither 1 nor 2")
        asked = [turn["value"] for turn in r["conversations"] if turn["from"] == "human"]
        if len(asked) != 1:
            # people ranked answers to the last question; our rankings have no earlier turns
            raise ValueError(f"the conversation has {len(asked)} questions, expected one")
        question = asked[0]
        ranked["responses"] = [r["output_1"]["value"], r["output_2"]["value"]]
        # one rank for each answer, not a list of the answers from best to worst
        ranked["ranking"] = [1, 2] if r["preference"] == 1 else [2, 1]
    elif "text" in r:
        text = json.loads(r["text"]) if isinstance(r["text"], str) else r["text"]
        question = text["question"]
        ranked["responses"] = [text["chosen"], text["rejected"]]
        ranked["ranking"] = [1, 2]
    else:
        question = r["question"]
        for key in ("responses", "ranking"):
            ranked[key] = r[key]
        for key in ("ratings", "kind"):
            if key in r:
                ranked[key] = r[key]
    # `prompt_of` and `pairs_of` put the mark back
    ranked["question"] = question.replace(IMAGE_MARK, "").strip()
    return ranked


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
