"""Rankings and pairs in the layouts that others publish or read.

    read_ranked     ours, LLaVA-RLHF's, RLHF-V's -> records with question, responses, ranking
    pairs_of        a ranked record -> every ordered pair
    trl_of          a pair -> messages and picture files, as TRL's trainers take them

Source: llava-rlhf/LLaVA-RLHF, data_utils_rm.py; RLHF-V's data card; huggingface/trl, dataset
formats. Used by: preferences.py.
"""

import json
from pathlib import Path

from PIL import Image

from minivlm.conversation import IMAGE_MARK
from minivlm.loading.images import Pictures

# --- reading ---


def read_ranked(path: str | Path) -> list[dict]:
    """Rankings in any of three layouts, as records with question, responses and ranking.

    Ours; LLaVA-RLHF's ("conversations", "output_1", "output_2", "preference": 1 or 2); RLHF-V's
    ("text": JSON or dict of "question", "chosen", "rejected").

    Raises:
        ValueError: for a line that is none of them, with file and line.
    """
    out = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            r = json.loads(line)
            out.append(ranked_of(r, f"record {number}"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}:{number} is no ranking: {error}") from None
    return out


def ranked_of(r: dict, name: str) -> dict:
    """One published record as ours.

    Raises:
        KeyError, TypeError, ValueError: if it is in no known layout.
    """
    made = {"id": str(r.get("id", r.get("idx", name))), "image": str(r.get("image", ""))}
    if "output_1" in r:
        if r["preference"] not in (1, 2):
            raise ValueError(f"preference {r['preference']!r} is neither 1 nor 2")
        asked, *more = [t["value"] for t in r["conversations"] if t["from"] == "human"]
        if more:
            raise ValueError("a conversation of several turns, of which only the last is ranked")
        made["responses"] = [r["output_1"]["value"], r["output_2"]["value"]]
        made["ranking"] = [1, 2] if r["preference"] == 1 else [2, 1]
    elif "text" in r:
        text = json.loads(r["text"]) if isinstance(r["text"], str) else r["text"]
        asked, made["responses"] = text["question"], [text["chosen"], text["rejected"]]
        made["ranking"] = [1, 2]
    else:
        asked, made["responses"], made["ranking"] = r["question"], r["responses"], r["ranking"]
        made |= {k: r[k] for k in ("ratings", "kind") if k in r}
    made["question"] = asked.replace(IMAGE_MARK, "").strip()
    return made


# --- writing ---


def trl_of(pair: dict, files: dict[str, str]) -> dict:
    """A pair as TRL's trainers take pictures and messages; `files`: packed picture -> its file."""
    asked = pair["conversations"][0]["value"].replace(IMAGE_MARK, "").strip()

    def said(text: str) -> list[dict]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    return {"images": [files.get(pair["image"], pair["image"])], "prompt": prompt,
            "chosen": said(pair["chosen"]), "rejected": said(pair["rejected"])}


def unpack(images: set[str], pictures: Pictures, out: Path) -> dict[str, str]:
    """Save packed pictures as PNG beside `out`, for programs that know files only.

    Returns:
        the file of each, relative to the folder of `out`.
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
