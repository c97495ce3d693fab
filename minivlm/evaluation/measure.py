"""Measure a model on the held-out records of a data folder, for evaluate.py.

    a CLIP         retrieval, zero-shot classification
    a VLM          answers by kind of question, style, refusals; POPE and CHAIR
    a captioner    captions, compared with people's captions

Each function returns figures by name; the formulas stand in minivlm/metrics. A figure of
nothing, as CHAIR of texts that name no object, is left out; `EvalData.left_out` says so.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minivlm import metrics
from minivlm.clip import CLIP
from minivlm.conversation import caption_rows, prompt_of, spoken
from minivlm.evaluation.correctness import UNSET, follows, is_right
from minivlm.evaluation.english import article
from minivlm.evaluation.refusals import group_of, is_refusal
from minivlm.generate import answer_logprobs, beam_search, generate
from minivlm.heads import RewardModel
from minivlm.loading.batches import collate, shorten_rows
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_records
from minivlm.rollout import scores_of
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM

Figures = dict[str, float]  # "group/figure" -> value

# the parts of a caption, and the words by which a part denies something
PARTS = re.compile(r"[,.;]| and ")
DENIES = re.compile(r"\b(?:no|not|without)\b", re.IGNORECASE)

# --- the data ---


@dataclass
class EvalData:
    """A data folder, as the measured model sees it.

    Args:
        folder: the data folder.
        meta: the content of meta.json.
        tokenizer: the model's.
        pictures: the folder's pictures, in the model's size.
        blind: show gray pictures instead, for the blind baseline.
        left_out: gets what was not measured: group of figures -> reason.
    """

    folder: str
    meta: dict
    tokenizer: Tokenizer
    pictures: Pictures
    blind: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    def has(self, split: str) -> bool:
        """Whether the folder holds `<split>.jsonl`."""
        return (Path(self.folder) / f"{split}.jsonl").is_file()

    def records(self, split: str, *need: str) -> list[dict]:
        """Read the records of a split; each must have the keys in `need`."""
        return load_records(self.folder, split, need)

    def look(self, names: list[str]) -> Tensor:
        """Load pictures by name, or as many gray pictures: (n, 3, S, S)."""
        images = self.pictures.get(names)
        # pixels are normalized, so 0 is the mean color of CLIP's pictures, nearly gray
        return torch.zeros_like(images) if self.blind else images

    def starts(self, n: int, size: int, what: str) -> Iterable[int]:
        """Return 0, size, 2 size, ... below n, with a progress bar named `what`."""
        name = "blind" if self.blind else what
        return tqdm(range(0, n, size), name, disable=None, leave=False)

    def object_names(self, record: dict, hidden: tuple[bool, ...]) -> list[str]:
        """Return the names of a picture's objects, as meta.json's phrases name them.

        Args:
            hidden: the kinds of objects that are wanted: (True,) the barely visible ones,
                (False,) the visible ones, (False, True) both.

        Raises:
            ValueError: if meta.json has no phrase for an object.
        """
        phrases = self.meta["phrases"]
        names = []
        for o in record["objects"]:
            if bool(o.get("hidden")) in hidden:
                # objects of photographs have no color
                color = o.get("attributes", {}).get("color", "")
                names.append(metrics.words_of(f"{color} {o['name']}").strip())
        unknown = set(names) - phrases.keys()
        if unknown:
            raise ValueError(
                f"meta.json has no phrase for {min(unknown)!r} of {record['id']}"
            )
        return [phrases[name] for name in names]

    def shown(self, record: dict) -> list[str]:
        """Return the objects that CHAIR takes as shown, by name.

        These are the visible objects, and the objects that people's captions mention. What a
        part of a caption denies ("and the dog is not in the picture") it does not mention.
        """
        names = self.object_names(record, (False,))
        for caption in record.get("captions", []):
            for part in PARTS.split(caption):
                if not DENIES.search(part):
                    names += metrics.mentions(part, self.meta["phrases"])
        return names


def under(group: str, figures: Figures) -> Figures:
    """Put the name of a group before each figure's name: "group/name"."""
    return {f"{group}/{name}": value for name, value in figures.items()}


def _grouped(
    items: Iterable[tuple[str, object]], most: int | None = None
) -> dict[str, list]:
    """Collect (group, value) pairs as group -> its first `most` values, groups sorted."""
    groups = defaultdict(list)
    for group, value in items:
        groups[group].append(value)
    return {group: groups[group][:most] for group in sorted(groups)}


def _means(name: str, items: Iterable[tuple[str, float]]) -> Figures:
    """Return the mean of the values in each group, as "name/group" -> mean."""
    return under(name, {group: _mean(values) for group, values in _grouped(items).items()})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- a CLIP ---


@torch.no_grad()
def embed_images(model: CLIP, images: Tensor) -> Tensor:
    """Embed pictures, 200 at a time: (n, 3, S, S) -> (n, C) of unit length."""
    device = next(model.parameters()).device
    return torch.cat([model.encode_image(part.to(device)) for part in images.split(200)])


@torch.no_grad()
def embed_texts(model: CLIP, texts: list[str], tokenizer: Tokenizer) -> Tensor:
    """Embed texts, 200 at a time: n texts -> (n, C) of unit length.

    If a text does not fit the context, its last words are cut off; its end token stays.
    """
    device = next(model.parameters()).device
    block_size = model.text.block_size
    embeddings = []
    for i in range(0, len(texts), 200):
        # an empty text has no token that the tower could read
        part = [text.strip() or "." for text in texts[i:i + 200]]
        rows = shorten_rows(caption_rows(part, tokenizer), block_size, 1)
        batch = collate(rows, tokenizer.pad, block_size)
        embeddings.append(model.encode_text(batch.idx.to(device), batch.lengths.to(device)))
    return torch.cat(embeddings)


def retrieval(model: CLIP, data: EvalData, n_images: int, chance: Figures) -> Figures:
    """Measure recall@1, 5 and 10 in both directions among n_images pictures.

    A picture has several captions, and each of them is right for it. If a caption of
    another picture has the same words, it is right, too.

    Args:
        n_images: most pictures: the first ones of val.jsonl that have captions.
        chance: gets the recalls of a random order.

    Returns:
        {} if no picture has captions.
    """
    records = [r for r in data.records("val", "image") if r.get("captions")][:n_images]
    if not records:
        data.left_out["retrieval"] = "no picture of val.jsonl has captions"
        return {}
    captions = []
    for r in records:
        captions += r["captions"]
    is_own = []
    for r in records:
        own = set(r["captions"])
        is_own.append([caption in own for caption in captions])
    right = torch.tensor(is_own)                                     # (pictures, captions)
    img_z = embed_images(model, data.look([r["image"] for r in records]))        # (n, C)
    txt_z = embed_texts(model, captions, data.tokenizer)             # (captions, C)
    similarity = (img_z @ txt_z.T).cpu()                             # (pictures, captions)
    figures = {}
    for k in (1, 5, 10):
        for way, scores, fits in (
            ("image_to_text", similarity, right), ("text_to_image", similarity.T, right.T),
        ):
            name = f"retrieval/{way}_r{k}"
            figures[name] = metrics.recall_at_k(scores, fits, k)
            chance[name] = metrics.recall_by_chance(fits, k)
    return figures


def classified(data: EvalData) -> list[dict]:
    """Read the pictures that `zero_shot` classifies; [] if it cannot.

    Raises:
        ValueError: if a picture's class has no texts: no answer could be right.
    """
    if "prompts" not in data.meta or not data.has("zeroshot"):
        return []
    records = data.records("zeroshot", "image", "label")
    for r in records:
        if r["label"] not in data.meta["prompts"]:
            raise ValueError(
                f"zeroshot.jsonl, record {r['id']}: meta.json has no prompts for its label "
                f"{r['label']!r}"
            )
    return records


def zero_shot(model: CLIP, data: EvalData, log: list[dict]) -> Figures:
    """Classify pictures by text, and measure the accuracy in each group of pictures.

    meta.json has several texts for each class ("prompts"). The mean of their embeddings
    stands for the class. A picture gets the class whose mean is most similar to it.

    Args:
        log: gets each picture with the chosen class and the right one.

    Returns:
        {} if the data folder has no zeroshot.jsonl, or meta.json no texts for the classes.

    Raises:
        ValueError: as `classified`.

    Source: CLIP, section 3.1.4: the normalized embeddings of a class's texts are averaged,
    then normalized again.
    """
    records = classified(data)
    if not records:
        return {}
    classes = list(data.meta["prompts"])
    prompts = data.meta["prompts"].values()
    means = [embed_texts(model, texts, data.tokenizer).mean(0) for texts in prompts]
    weights = torch.stack([F.normalize(z, dim=0) for z in means])    # (classes, C)
    img_z = embed_images(model, data.look([r["image"] for r in records]))
    chosen = [classes[c] for c in (img_z @ weights.T).argmax(1).tolist()]
    hits = []
    for r, answer in zip(records, chosen):
        hits.append((r.get("group", "all"), answer == r["label"]))
        log.append({
            "image": r["image"], "kind": "zero_shot",
            "answer": answer, "expected": r["label"],
        })
    return _means("zero_shot", hits)


# --- a VLM ---

# questions with their "image", and with the turns "before" them if there are any -> answers
Answerer = Callable[[list[dict]], list[str]]


@dataclass
class BestOf:
    """Draw n answers and keep the one that a reward model likes best.

    Its KL to the model that draws is at most ln n - (n - 1) / n nats.

    Source: Stiennon et al. 2020, arXiv:2009.01325, section 4.3, and appendix G.3 for the KL.
    """

    reward_model: RewardModel
    n: int
    temperature: float = 1.0
    seed: int = 0


def make_answerer(
    model: VLM, data: EvalData, stop: int, max_new_tokens: int, batch_size: int,
    best: BestOf | None = None,
) -> Answerer:
    """Make the function that asks a model; the model answers by greedy decoding.

    Args:
        stop: the id that ends an answer, see `Tokenizer.stop`.
        max_new_tokens: most tokens of an answer.
        batch_size: how many answers are written at a time, drawn ones included.
        best: how to draw answers and choose among them, instead of greedy decoding.
    """
    if best:
        batch_size = max(1, batch_size // best.n)
        generator = torch.Generator(next(model.parameters()).device).manual_seed(best.seed)

    def write(images: Tensor, prompts: list[list[int]]) -> list[list[int]]:
        """The ids of an answer to each prompt."""
        if not best:
            return generate(model, images, prompts, max_new_tokens=max_new_tokens, stop=stop)
        drawn = generate(
            model, images, prompts, max_new_tokens=max_new_tokens, stop=stop, keep_stop=True,
            n_copies=best.n, temperature=best.temperature, generator=generator,
        )
        with torch.no_grad():
            feats = best.reward_model.vlm.vit.features(images)       # (B, N, Cv)
            score = scores_of(best.reward_model, feats, prompts, drawn, data.tokenizer)
        liked = score.view(-1, best.n).argmax(1).tolist()            # (B,)
        chosen = [drawn[i * best.n + j] for i, j in enumerate(liked)]
        return [ids[:-1] if ids[-1] == stop else ids for ids in chosen]

    def ask(questions: list[dict]) -> list[str]:
        n_tokens = model.config.vit.n_tokens
        prompts = []
        for q in questions:
            before = q.get("before", ())
            prompts.append(prompt_of(q["question"], data.tokenizer, n_tokens, (), before))
        # prompts of similar length share a batch, so a batch has few pads
        order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
        answers = [""] * len(questions)
        for start in data.starts(len(questions), batch_size, "asking"):
            chosen = order[start:start + batch_size]
            images = data.look([questions[i]["image"] for i in chosen])
            for i, ids in zip(chosen, write(images, [prompts[i] for i in chosen])):
                answers[i] = data.tokenizer.decode(ids).strip()
        return answers

    return ask


def answers(
    ask: Answerer, data: EvalData, n_questions: int, log: list[dict], split: str = "eval"
) -> Figures:
    """Ask the questions of a split, and measure the answers.

        answers/<kind>      share of right answers, to questions with `expect`
        style/<style>       share of answers in the style that was asked for
        refused/<group>     share of refusals: "due", "harmless", "other" (see `group_of`)
        vqa/accuracy        agreement with several people, to questions with `people`
        form/<kind>         share of answers that `follows` accepts; only measured if some
                            question has a `form`
        sight/<sight>_<what>  of the questions with a `sight`: shares of "right" answers, of
                            "unsure" ones, and of "wrong" ones, which are the rest
        sight/answered      share of right answers among those that are not unsure
        followed/form       mean of form/<kind> over the kinds
        followed/all        mean over the kinds: share of answers that `follows` accepts and
                            that are right, to questions for which `is_right` can tell

    Args:
        n_questions: most questions of each kind.
        log: gets each question with its answer.
    """
    questions = questions_of(data, n_questions, split)
    replies = ask(questions)
    asked = list(zip(questions, replies))
    for q, a in asked:
        log.append({
            "image": q["image"], "kind": q["kind"], "question": q["question"],
            "answer": a, "expected": q["answer"],
        })

    phrases = data.meta.get("phrases", {})
    figures = _means("answers", [
        (q["kind"], is_right(a, q, phrases)) for q, a in asked if q["expect"]
    ])
    figures |= _means("style", [
        (q["style"], metrics.style_ok(a, q["style"])) for q, a in asked if q["style"]
    ])
    figures |= _means("refused", [(group_of(q), is_refusal(a)) for q, a in asked])
    figures |= _means("vqa", [
        ("accuracy", metrics.vqa_accuracy(a, q["people"])) for q, a in asked if q["people"]
    ])

    figures |= honesty(asked, phrases)
    form = _means("form", [(q["kind"], follows(a, q)) for q, a in asked])
    if any(q["form"] for q in questions):
        figures |= form
    decided = [(q, a) for q, a in asked if is_right(a, q, phrases) is not None]
    good = _means("all", [
        (q["kind"], follows(a, q) and is_right(a, q, phrases)) for q, a in decided
    ])
    # means over kinds: a kind with many questions must not outweigh the others
    if form:
        figures["followed/form"] = _mean(list(form.values()))
    if good:
        figures["followed/all"] = _mean(list(good.values()))
    return figures


def honesty(asked: list[tuple[dict, str]], phrases: metrics.Phrases) -> Figures:
    """Measure what a chatbot says of things that it sees well, hardly, and not at all.

    Args:
        asked: questions, each with its answer; only those with a `sight` count.

    Source: right, wrong and unsure apart: R-Tuning, arXiv:2311.09677, section 4.
    """
    pairs = []
    answered = []
    for q, a in asked:
        if not q["sight"]:
            continue
        right = bool(is_right(a, q, phrases))
        unsure = not right and metrics.is_unsure(a)
        for name, value in (("right", right), ("unsure", unsure),
                            ("wrong", not right and not unsure)):
            pairs.append((f"{q['sight']}_{name}", value))
        if not unsure:
            answered.append(("answered", right))
    return _means("sight", pairs + answered)


def questions_of(data: EvalData, n_questions: int, split: str) -> list[dict]:
    """Return the questions of a split that `answers` asks, with all keys of UNSET."""
    every = [UNSET | q for q in data.records(split, "kind", "question", "image")]
    questions = []
    for group in _grouped([(q["kind"], q) for q in every], n_questions).values():
        questions += group
    return questions


def ranked(
    model: VLM, data: EvalData, stop: int, n_questions: int, batch_size: int,
    chance: Figures, split: str = "eval",
) -> Figures:
    """Measure one-word answers if the model chooses the likeliest of several candidates.

    The model writes nothing, so it cannot lose by unusual words; BLIP answers VQA in this
    way. The candidates are the right answers to the questions of the same kind; each ends
    with the id `stop`.

    Args:
        stop: the id that ends an answer, see `Tokenizer.stop`.
        n_questions: most questions of each kind.
        batch_size: how many candidates are read at a time.
        chance: gets the accuracy of candidates drawn at random.

    Returns:
        "ranked/<kind>" -> share of right choices; "calibration/confidence" -> the mean share
        of the chosen candidate in the probability of all candidates; "calibration/error" ->
        how far this share is from accuracy, see `metrics.calibration_error`.
    """
    records = data.records(split, "kind", "question", "image")
    asked = [q for q in records if q.get("style") == "word" and q.get("answer")]
    figures = {}
    confidences, all_hits = [], []
    for kind, questions in _grouped([(q["kind"], q) for q in asked], n_questions).items():
        candidates = sorted({q["answer"] for q in questions})
        ids = [spoken(answer, data.tokenizer) + [stop] for answer in candidates]
        n_tokens = model.config.vit.n_tokens
        prompts = [prompt_of(q["question"], data.tokenizer, n_tokens) for q in questions]
        hits = []
        for i in data.starts(len(questions), batch_size, f"ranking {kind}"):
            some = questions[i:i + batch_size]
            images = data.look([q["image"] for q in some])
            logps = torch.cat([answer_logprobs(
                model, images, prompts[i:i + batch_size], ids[j:j + batch_size],
                data.tokenizer.pad,
            ) for j in range(0, len(ids), batch_size)], dim=1)       # (some, candidates)
            for q, best in zip(some, logps.argmax(1).tolist()):
                hits.append(candidates[best] == q["answer"])
            confidences += logps.softmax(1).amax(1).tolist()
        all_hits += hits
        figures[f"ranked/{kind}"] = _mean(hits)
        chance[f"ranked/{kind}"] = 1 / len(candidates)
    if all_hits:
        figures["calibration/confidence"] = _mean(confidences)
        figures["calibration/error"] = metrics.calibration_error(
            torch.tensor(confidences), torch.tensor(all_hits)
        )
    return figures


def conclusion(answer: str) -> str:
    """Return the final yes or no: "no" for "A cat is not in the picture, so no.".

    POPE's rule reads only the first sentence and takes the word "not" for a no. Our answers
    end with ", so yes" or ", so no", and this ending decides.
    """
    found = re.search(r", so (yes|no)\W*$", answer)
    return found[1] if found else answer


# group of figures -> kind of question in the log, question
DESCRIBE = {
    "chair": ("describe", "Describe the picture."),
    "chair_detail": ("detail", "Describe the picture in detail."),
}


def hallucination(
    ask: Answerer, data: EvalData, n_describe: int, seed: int, log: list[dict]
) -> Figures:
    """Measure invented objects: POPE with three strategies, and CHAIR of descriptions.

    CHAIR is measured twice: of descriptions whose form is left open ("chair"), and of those
    that are asked for in detail ("chair_detail"). Whoever lists what is plain to see invents
    little, so only the second figure compares chatbots that prefer different forms.

    Args:
        n_describe: most pictures to ask about.
        seed: decides which objects POPE asks about.
        log: gets each description; POPE's answers are not logged.
    """
    records = [r for r in data.records("val", "image") if r.get("objects")]
    # questions about private pictures must be refused, so they measure nothing here
    records = [r for r in records if r.get("border") != "private"][:n_describe]
    clear = [data.object_names(r, (False,)) for r in records]
    # POPE must not ask about barely visible objects: neither yes nor no is a fair answer
    every = [data.object_names(r, (False, True)) for r in records]
    if not records:
        data.left_out["pope, chair"] = "no picture of val.jsonl has objects"
        return {}
    figures = {}
    for strategy in ("random", "popular", "adversarial"):
        asked = metrics.pope_questions(clear, strategy, seed, annotated=every)
        if not asked:
            data.left_out["pope"] = "no picture shows one object clearly and lacks another"
            break
        questions = []
        for i, name, _ in asked:
            question = f"Is there {article(name)}?"
            questions.append({"image": records[i]["image"], "question": question})
        replies = ask(questions)
        truth = [is_there for _, _, is_there in asked]
        pope = metrics.pope([metrics.says_yes(conclusion(a)) for a in replies], truth)
        if "precision" not in pope:
            data.left_out[f"pope_{strategy}/precision"] = "the model never says yes"
        figures |= under(f"pope_{strategy}", pope)

    shown = [data.shown(r) for r in records]
    hidden = [data.object_names(r, (True,)) for r in records]
    known = [s + e for s, e in zip(shown, every)]
    for group, (kind, question) in DESCRIBE.items():
        replies = ask([{"image": r["image"], "question": question} for r in records])
        for r, a in zip(records, replies):
            log.append({
                "image": r["image"], "kind": kind, "question": question, "answer": a,
            })
        named = [metrics.mentions(a, data.meta["phrases"]) for a in replies]
        chair = metrics.chair(named, shown)
        if any(hidden):
            chair["recall_hidden"] = metrics.chair(named, hidden)["recall"]
        if not any(named):
            data.left_out[f"{group}/chair_i"] = "no description names an object"
        elif any(hidden):
            # the same figure if barely visible objects count as shown
            chair["chair_i_annotation"] = metrics.chair(named, known)["chair_i"]
        figures |= under(group, chair)
    return figures


# --- a captioner ---


def captioning(
    model: VLM, data: EvalData, prompt: str, n_describe: int, n_beams: int,
    max_new_tokens: int, batch_size: int, log: list[dict], clip: CLIP | None = None,
) -> Figures:
    """Write captions by beam search, and compare them with people's captions.

    Measures BLEU-4, ROUGE-L and CIDEr-D; CHAIR, of pictures whose objects are known;
    CLIPScore, if `clip` is given.

    Args:
        prompt: the words before every caption, as in training; no part of the caption.
        n_describe: most pictures to write a caption for.
        n_beams: see `beam_search`.
        max_new_tokens: most tokens of a caption.
        batch_size: how many captions are written at a time.
        log: gets each caption.
        clip: a CLIP with the same tokenizer. It measures the CLIPScore of the model's
            captions, and of one caption by people for each picture.
    """
    records = data.records("val", "image", "captions")[:n_describe]
    images = [r["image"] for r in records]
    tokenizer = data.tokenizer
    n_tokens = model.config.vit.n_tokens
    ids = [*tokenizer.begin, *[tokenizer.image] * n_tokens, *tokenizer.encode(prompt)]
    captions: list[str] = []
    for i in data.starts(len(records), batch_size, "captions"):
        pixels = data.look(images[i:i + batch_size])                 # (b, 3, S, S)
        best = beam_search(
            model, pixels, [ids] * len(pixels), n_beams=n_beams,
            max_new_tokens=max_new_tokens, stop=tokenizer.endoftext,
        )
        captions += [tokenizer.decode(row) for row, _ in best]
    for image, caption in zip(images, captions):
        log.append({
            "image": image, "kind": "caption", "question": prompt, "answer": caption,
        })

    # the metrics of captions compare words: "Ring." and "ring" are the same
    texts = [metrics.tokenize(caption) for caption in captions]
    references = []
    for r in records:
        references.append([metrics.tokenize(caption) for caption in r["captions"]])
    figures = {
        "captions/bleu4": metrics.bleu(texts, references)[3],
        "captions/rouge_l": metrics.rouge_l(texts, references),
        "captions/cider": metrics.cider(texts, references)[0],
    }
    if "phrases" in data.meta:
        figures |= under("captions", _chair_of_captions(captions, records, data))
    if clip is not None:
        # captions of gray pictures are compared with the true pictures, too
        img_z = embed_images(clip, data.pictures.get(images))
        people = [r["captions"][0] for r in records]
        for name, some in (("clip_score", captions), ("clip_score_people", people)):
            txt_z = embed_texts(clip, some, tokenizer)
            figures[f"captions/{name}"] = metrics.clip_score(img_z, txt_z)
    return figures


def _chair_of_captions(captions: list[str], records: list[dict], data: EvalData) -> Figures:
    """Measure CHAIR on the pictures whose objects are known; {} if there is none."""
    known = [(c, r) for c, r in zip(captions, records) if "objects" in r]
    # no object in any picture: then nobody has looked for them
    if not any(r["objects"] for _, r in known):
        data.left_out["captions/chair"] = "no picture of val.jsonl has objects"
        return {}
    if len(known) < len(records):
        unknown = f"captions/chair of {len(records) - len(known)} pictures"
        data.left_out[unknown] = "their objects are not known"
    named = [metrics.mentions(caption, data.meta["phrases"]) for caption, _ in known]
    if not any(named):
        data.left_out["captions/chair_i"] = "no caption names an object"
    return metrics.chair(named, [data.shown(r) for _, r in known])
