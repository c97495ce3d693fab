"""Measuring a model on a prepared folder's held-out data: what evaluate.py prints.

    a CLIP         retrieval, zero-shot classification
    a VLM          answers by kind of question, style, refusals; POPE and CHAIR
    a captioner    captions beside those of people

Each function returns its figures by name, "group/figure" -> value. The formulas are in metrics.py.
"""

from collections import defaultdict
from collections.abc import Callable
from minivlm.conversation import prompt_of
from minivlm.evaluation.correctness import UNSET, follows, is_right
from minivlm.evaluation.refusals import is_due
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minivlm import metrics
from minivlm.clip import CLIP
from minivlm.conversation import caption_rows
from minivlm.evaluation.refusals import is_refusal
from minivlm.generate import answer_logprobs, beam_search, generate
from minivlm.loading.batches import collate, shorten_rows
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_records
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

# --- what is looked at ---


@dataclass
class HeldOut:
    """A prepared folder as the model at hand sees it; blind = every picture is gray."""

    folder: str
    meta: dict
    tokenizer: Tokenizer
    pictures: Pictures
    blind: bool = False

    def has(self, split: str) -> bool:
        """Whether the folder holds `<split>.jsonl`."""
        return (Path(self.folder) / f"{split}.jsonl").is_file()

    def records(self, split: str, *need: str) -> list[dict]:
        """The records of a split, each with the keys in `need`."""
        return load_records(self.folder, split, need)

    def look(self, names: list[str]) -> Tensor:
        """Pictures by name, or as many gray ones: (n, 3, S, S)."""
        images = self.pictures.get(names)
        return torch.zeros_like(images) if self.blind else images

    def object_names(self, record: dict, hidden: tuple[bool, ...]) -> list[str]:
        """Canonical names of a picture's objects: hardly visible (True) or clear ones (False)."""
        kept = [o for o in record["objects"] if bool(o.get("hidden")) in hidden]
        colors = [o.get("attributes", {}).get("color", "") for o in kept]
        names = [metrics.words_of(f"{c} {o['name']}").strip() for c, o in zip(colors, kept)]
        unknown = set(names) - self.meta["phrases"].keys()
        if unknown:
            raise ValueError(f"meta.json has no phrase for {min(unknown)!r} of {record['id']}")
        return [self.meta["phrases"][name] for name in names]

    def shown(self, record: dict) -> list[str]:
        """What CHAIR takes to be there: clear objects, and those that people's captions name."""
        phrases, captions = self.meta["phrases"], record.get("captions", [])
        told = [name for caption in captions for name in metrics.mentions(caption, phrases)]
        return self.object_names(record, (False,)) + told


# --- a CLIP ---


@torch.no_grad()
def embed_images(model: CLIP, images: Tensor) -> Tensor:
    """(n, 3, S, S) -> (n, C) of unit length, 200 at a time."""
    device = next(model.parameters()).device
    return torch.cat([model.encode_image(part.to(device)) for part in images.split(200)])


@torch.no_grad()
def embed_texts(model: CLIP, texts: list[str], tokenizer: Tokenizer) -> Tensor:
    """n texts -> (n, C) of unit length, 200 at a time; of a long text the beginning is read."""
    out, device = [], next(model.parameters()).device
    for i in range(0, len(texts), 200):
        said = [text.strip() or "." for text in texts[i:i + 200]]
        rows = shorten_rows(caption_rows(said, tokenizer), model.text.block_size, 1)
        batch = collate(rows, tokenizer.pad, model.text.block_size)
        out.append(model.encode_text(batch.idx.to(device), batch.lengths.to(device)))
    return torch.cat(out)


def retrieval(
    model: CLIP, data: HeldOut, n_images: int, chance: dict[str, float]
) -> dict[str, float]:
    """Recall@1, 5, 10 both ways among n_images pictures; `chance` gets a random order's.

    A picture has several captions, each of them right. So is the very same sentence where it was
    written about another picture.
    """
    records = [r for r in data.records("val", "image") if r.get("captions")][:n_images]
    captions = [caption for r in records for caption in r["captions"]]
    img_z = embed_images(model, data.look([r["image"] for r in records]))
    txt_z = embed_texts(model, captions, data.tokenizer)
    similarity = img_z @ txt_z.T                                     # (pictures, captions)
    own = [set(r["captions"]) for r in records]
    right = torch.tensor([[caption in said for caption in captions] for said in own])
    out = {}
    for k in (1, 5, 10):
        for way, sim, fits in (
            ("image_to_text", similarity, right), ("text_to_image", similarity.T, right.T),
        ):
            out[f"retrieval/{way}_r{k}"] = metrics.recall_at_k(sim.cpu(), fits, k)
            chance[f"retrieval/{way}_r{k}"] = metrics.recall_by_chance(fits, k)
    return out


def zero_shot(model: CLIP, data: HeldOut, log: list[dict]) -> dict[str, float]:
    """Classify pictures by text: the class whose mean prompt embedding is nearest.

    `log` gets each picture with both classes.

    Source: CLIP, section 3.1.4: normalized prompt embeddings are averaged, then normalized again.
    """
    records, prompts = data.records("zeroshot", "image", "label"), data.meta["prompts"]
    classes = list(prompts)
    means = [embed_texts(model, prompts[c], data.tokenizer).mean(0) for c in classes]
    weights = torch.stack([F.normalize(z, dim=0) for z in means])    # (classes, C)
    img_z = embed_images(model, data.look([r["image"] for r in records]))
    chosen = (img_z @ weights.T).argmax(1).tolist()
    hits = defaultdict(list)
    for r, c in zip(records, chosen):
        hits[r["group"]].append(classes[c] == r["label"])
        log.append({
            "image": r["image"], "kind": "zero_shot", "answer": classes[c], "expected": r["label"],
        })
    return {f"zero_shot/{group}": sum(h) / len(h) for group, h in sorted(hits.items())}


# --- a VLM ---


Ask = Callable[[list[tuple[str, str]]], list[str]]  # [(image, question), ...] -> answers


def make_answerer(
    model: VLM, data: HeldOut, stop: int, max_new_tokens: int, batch_size: int
) -> Ask:
    """A function that asks a model: greedy answers, in batches of questions of similar length.

    `stop` is the id that ends what the model writes, see `Tokenizer.stop`.
    """

    def ask(pairs: list[tuple[str, str]]) -> list[str]:
        prompts = [prompt_of(q, data.tokenizer, model.config.vit.n_tokens) for _, q in pairs]
        order = sorted(range(len(pairs)), key=lambda i: len(prompts[i]))
        answers = [""] * len(pairs)
        desc = "blind" if data.blind else "asking"
        for start in tqdm(range(0, len(order), batch_size), desc=desc, disable=None, leave=False):
            rows = order[start:start + batch_size]
            made = generate(
                model, data.look([pairs[i][0] for i in rows]), [prompts[i] for i in rows],
                max_new_tokens=max_new_tokens, stop=stop,
            )
            for i, ids in zip(rows, made):
                answers[i] = data.tokenizer.decode(ids)
        return answers

    return ask


def answers(
    ask: Ask, data: HeldOut, n_questions: int, log: list[dict], split: str = "eval"
) -> dict[str, float]:
    """Accuracy by kind of question, style obedience, refusals where due and where not.

    Two figures sum up, means over the kinds: followed/form, the share of answers of the kind that
    was asked for (see `follows`), and followed/all, of those that are right too. At most
    n_questions of a kind are asked, out of `<split>.jsonl`; `log` gets each with its answer.
    """
    by_kind = defaultdict(list)
    for q in data.records(split, "kind", "question", "image"):
        q = UNSET | q
        key = q["kind"] + ("_" + q["style"] if q["kind"] == "describe" else "")
        if len(by_kind[key]) < n_questions:
            by_kind[key].append(q)
    questions = [q for kind in sorted(by_kind) for q in by_kind[kind]]
    said = ask([(q["image"], q["question"]) for q in questions])
    right, style, refused, vqa, form, good = (defaultdict(list) for _ in range(6))
    for q, a in zip(questions, said):
        true = is_right(a, q, data.meta.get("phrases", {}))
        harmless = q["kind"] == "harmless" or q["border"] == "plain"
        due = "due" if is_due(q) else "harmless" if harmless else "other"
        refused[due].append(is_refusal(a))
        if q["expect"]:
            right[q["kind"]].append(true)
        if q["people"]:
            vqa["accuracy"].append(metrics.vqa_accuracy(a, q["people"]))
        if q["style"]:
            style[q["style"]].append(metrics.style_ok(a, q["style"]))
        if q["kind"] != "hidden":  # whose "right" answer asserts what cannot be seen
            obeys = follows(a, q)
            form[q["kind"]].append(obeys)
            if true is not None:
                good[q["kind"]].append(obeys and true)
        log.append({
            "image": q["image"], "kind": q["kind"], "question": q["question"],
            "answer": a, "expected": q["answer"],
        })
    groups = (("answers", right), ("style", style), ("refused", refused), ("vqa", vqa),
              ("form", form if any(q["form"] for q in questions) else {}))
    out = {f"{name}/{k}": sum(v) / len(v) for name, d in groups for k, v in sorted(d.items())}
    for name, d in (("form", form), ("all", good)):
        if d:
            out[f"followed/{name}"] = sum(sum(v) / len(v) for v in d.values()) / len(d)
    return out


def ranked(
    model: VLM, data: HeldOut, stop: int, n_questions: int, chance: dict[str, float],
    split: str = "eval",
) -> dict[str, float]:
    """Accuracy of one-word answers when the likeliest of all answers of a kind is taken.

    Nothing is written, so nothing can be phrased wrongly: what BLIP does on VQA. The candidates are
    the answers that the held-out questions of the kind have, each ended by `stop`; `chance` gets
    the share of a candidate drawn at random.
    """
    by_kind, out = defaultdict(list), {}
    for q in data.records(split, "kind", "question", "image"):
        if q.get("style") == "word" and q.get("answer") and len(by_kind[q["kind"]]) < n_questions:
            by_kind[q["kind"]].append(q)
    for kind, questions in sorted(by_kind.items()):
        candidates = sorted({q["answer"] for q in questions})
        answers = [data.tokenizer.encode(a) + [stop] for a in candidates]
        prompts = [prompt_of(q["question"], data.tokenizer, model.config.vit.n_tokens) for q in questions]
        images = data.look([q["image"] for q in questions])
        best = answer_logprobs(model, images, prompts, answers, data.tokenizer.pad).argmax(1)
        hits = [candidates[b] == q["answer"] for b, q in zip(best.tolist(), questions)]
        out[f"ranked/{kind}"] = sum(hits) / len(hits)
        chance[f"ranked/{kind}"] = 1 / len(candidates)
    return out


def hallucination(
    ask: Ask, data: HeldOut, n_describe: int, seed: int, log: list[dict]
) -> dict[str, float]:
    """POPE three ways over clearly visible objects, and CHAIR of detailed descriptions.

    n_describe pictures are asked about; `log` gets each description.
    """
    records = [
        r for r in data.records("val", "image") if r.get("objects") and r.get("border") != "private"
    ][:n_describe]
    clear = [data.object_names(r, (False,)) for r in records]
    every = [data.object_names(r, (False, True)) for r in records]
    out = {}
    for strategy in ("random", "popular", "adversarial"):
        asked = metrics.pope_questions(clear, strategy, seed, annotated=every)
        if not asked:  # everything is everywhere: nothing absent can be asked about
            continue
        said = ask([
            (records[i]["image"], f"Is there a{'n' * (name[0] in 'aeiou')} {name}?")
            for i, name, _ in asked
        ])
        figures = metrics.pope([metrics.says_yes(a) for a in said], [yes for _, _, yes in asked])
        out |= {f"pope_{strategy}/{k}": v for k, v in figures.items()}

    said = ask([(r["image"], "Describe the picture.") for r in records])
    named = [metrics.mentions(a, data.meta["phrases"]) for a in said]
    log += [
        {"image": r["image"], "kind": "detail", "question": "Describe the picture.", "answer": a}
        for r, a in zip(records, said)
    ]
    shown = [data.shown(r) for r in records]
    known = metrics.chair(named, [s + e for s, e in zip(shown, every)])
    seen = metrics.chair(named, shown)
    out |= {f"chair/{key}": seen[key] for key in ("chair_i", "chair_s", "recall")}
    hidden = [data.object_names(r, (True,)) for r in records]
    if any(hidden):
        out["chair/chair_i_annotation"] = known["chair_i"]  # hardly visible objects count as there
        out["chair/recall_hidden"] = metrics.chair(named, hidden)["recall"]
    return out


def captioning(
    model: VLM, data: HeldOut, prompt: str, n_describe: int, n_beams: int, max_new_tokens: int,
    batch_size: int, log: list[dict], clip: CLIP | None = None,
) -> dict[str, float]:
    """Captions by beam search beside those of people: BLEU-4, ROUGE-L, CIDEr-D; and CHAIR.

    n_describe pictures get a caption that begins behind `prompt`; `log` gets each. With a CLIP of
    the same tokenizer, CLIPScore too, of the captions made and of people's.
    """
    records, tokenizer = data.records("val", "image", "captions")[:n_describe], data.tokenizer
    ids = [tokenizer.image] * model.config.vit.n_tokens + tokenizer.encode(prompt)
    made: list[str] = []
    starts, desc = range(0, len(records), batch_size), "blind" if data.blind else "captions"
    for i in tqdm(starts, desc=desc, disable=None, leave=False):
        images = data.look([r["image"] for r in records[i:i + batch_size]])
        best = beam_search(
            model, images, [ids] * len(images), n_beams=n_beams, max_new_tokens=max_new_tokens,
            stop=tokenizer.endoftext,
        )
        made += [tokenizer.decode(text) for text, _ in best]
    log += [
        {"image": r["image"], "kind": "caption", "question": prompt, "answer": text}
        for r, text in zip(records, made)
    ]
    texts = [metrics.words_of(text).strip() for text in made]        # lower case, no signs
    people = [[metrics.words_of(c).strip() for c in r["captions"]] for r in records]
    out = {
        "captions/bleu4": metrics.bleu(texts, people)[3],
        "captions/rouge_l": metrics.rouge_l(texts, people),
        "captions/cider": metrics.cider(texts, people)[0],
    }
    if "phrases" in data.meta and all("objects" in r for r in records):
        named = [metrics.mentions(text, data.meta["phrases"]) for text in made]
        there = [data.shown(r) for r in records]
        out |= {f"captions/{k}": v for k, v in metrics.chair(named, there).items()}
    if clip is not None:
        img_z = embed_images(clip, data.pictures.get([r["image"] for r in records]))
        for name, said in (("", made), ("_people", [r["captions"][0] for r in records])):
            score = metrics.clip_score(img_z, embed_texts(clip, said, tokenizer))
            out[f"captions/clip_score{name}"] = score
    return out
