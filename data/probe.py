r"""Probe what a chatbot knows, and write dialogues that teach it to say "not sure" elsewhere.

    python data/probe.py                                                  asks runs/sft
    python train_sft.py --init runs/sft --split honest --val_split honest_val --steps 600 \
        --muon_lr 0.005 --lr 5e-4 --out runs/honest
    python evaluate.py --run runs/honest --questions sight --n_questions 1000 --no-describe

The questions are about clearly visible things, about hardly visible things, which only the
annotation shows, and about absent things. The chatbot answers each question k times. Then one
answer is taught: the right one, or "I'm not sure" if fewer of the k answers were right than
`least` asks for, which is a share. Files in the data folder:

    honest.jsonl, honest_val.jsonl
                        for `train_sft.py`: these dialogues, and as many of those that it
                        has learned from, so that it forgets nothing
    sight.jsonl         for `evaluate.py --questions sight`: such questions about held-out
                        pictures in phrasings that no dialogue uses
    sight_prompts.jsonl, sight_prompts_val.jsonl
                        for stage 4: such questions, in words of their own, about pictures
                        that were not probed, and as many questions of prompts.jsonl

Source: R-Tuning, Zhang et al. 2024, arXiv:2311.09677, section 3; with pictures and with
samples instead of one answer: Visual-Idk, arXiv:2604.26419.
"""

import time
from collections import Counter
from dataclasses import dataclass
from random import Random

from minivlm.conversation import Turn
from minivlm.engine.quiz import lines_of, sight_questions
from minivlm.engine.wording import HARD_TO_SEE, world_of
from minivlm.evaluation.correctness import UNSET, is_right
from minivlm.loading.images import Pictures
from minivlm.loading.models import fit_of, vlm_from
from minivlm.loading.prepared import load_meta, load_records, write_records
from minivlm.preferences.pool import sample
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint, machine, options
from minivlm.tokenizer import CHATBOTS


@dataclass
class Config:
    """Options of the command; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py; gets the files
    split: str = "train"  # file with the records to ask about; a tenth is held out
    val_split: str = "val"  # file with the records to measure with
    n: int = 6000  # >= 10; pictures of `split` to ask about; as many again for stage 4
    # answers
    run: str = "runs/sft"  # run folder of the chatbot
    k: int = 8  # >= 1; answers to each question
    temperature: float = 1.0  # > 0; for drawing them
    least: float = 0.5  # 0 .. 1; share of right answers from which on it is said to know
    max_new_tokens: int = 48  # >= 1; longest answer in tokens
    batch_size: int = 100  # >= 1; questions answered at once; more take more memory
    # machine
    seed: int = 0  # >= 0; decides pictures, questions and answers
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice


def dialogue(q: dict, answer: str) -> list[Turn]:
    """A question and its answer in LLaVA's format."""
    return [{"from": "human", "value": f"<image>\n{q['question']}"},
            {"from": "gpt", "value": answer}]


def main(cfg: Config) -> dict[str, float]:
    """Ask, write the files; return the share of admissions that are taught of each sight.

    Raises:
        ValueError: if no record has objects.
    """
    began = time.time()
    options.check(cfg)
    machine.seed_everything(cfg.seed, cfg.threads)
    meta = load_meta(cfg.data)
    world, phrases = world_of(meta), meta.get("phrases", {})

    # --- questions ---
    def ask_about(pictured: list[dict], seed: int, use: str) -> list[dict]:
        lines = []
        for record in pictured:
            rng = Random(f"{seed} {record['id']} sight")
            lines += lines_of(record, sight_questions(record, rng, world), rng, use)
        if not lines:
            raise ValueError(f"{cfg.data} has no records with objects to ask about")
        return lines

    # read every file before the sampling, which takes a minute: one may be missing
    records = load_records(cfg.data, cfg.split, need=("image", "conversations"))
    val_records = load_records(cfg.data, cfg.val_split, need=("image", "conversations"))
    older = {name: load_records(cfg.data, name, need=("image",))
             for name in ("prompts", "prompts_val")}
    n = min(cfg.n, len(records) // 2)
    n_val = max(1, n // 10)
    chosen = Random(f"{cfg.seed} pictures").sample(records, 2 * n)
    # held out: a tenth of the pictures to probe, and a tenth of the pictures for stage 4
    questions = ask_about(chosen[n_val:n], cfg.seed, "taught")
    questions_val = ask_about(chosen[:n_val], cfg.seed, "taught")
    prompts = ask_about(chosen[n + n_val:], cfg.seed, "asked")
    prompts_val = ask_about(chosen[n:n + n_val], cfg.seed, "asked")
    # whatever the seed: all chatbots are measured alike
    held_out = ask_about(val_records, 0, "unseen")

    # --- answers ---
    state = load_state(cfg.run, CHATBOTS)
    tokenizer = checkpoint.tokenizer_of(state)
    model = vlm_from(state, take=True).requires_grad_(False)
    model.to(machine.pick_device(cfg.device)).eval()
    pictures = Pictures(cfg.data, model.vit.config.image_size, fit_of(state))
    admitted: dict[str, list[bool]] = {}  # sight -> of each question to learn from
    probed: dict[bool, list[dict]] = {True: [], False: []}  # held out, or to learn from
    held_out_images = {r["image"] for r in chosen[:n_val]}
    for q, answers in sample(model, pictures, tokenizer, questions + questions_val, cfg.k,
                             (cfg.temperature,), cfg.max_new_tokens, cfg.batch_size,
                             cfg.seed):
        right = [bool(is_right(answer, UNSET | q, phrases)) for answer in answers]
        knows = sum(right) >= cfg.least * len(right)
        is_held_out = q["image"] in held_out_images
        if not is_held_out:
            admitted.setdefault(q["sight"], []).append(not knows)
        probed[is_held_out].append({
            "id": f"sight-{q['id']}", "image": q["image"],
            "conversations": dialogue(q, q["answer"] if knows else HARD_TO_SEE),
            "sight": q["sight"], "right": sum(right) / len(right),
        })

    # --- files ---
    rng = Random(f"{cfg.seed} mixture")

    def mixed(lines: list[dict], others: list[dict]) -> list[dict]:
        """The lines and as many others, in random order."""
        every = lines + rng.sample(others, min(len(lines), len(others)))
        return rng.sample(every, len(every))

    to_learn_from = [r for r in records if r["image"] not in held_out_images]
    write_records(cfg.data, "honest", mixed(probed[False], to_learn_from))
    write_records(cfg.data, "honest_val", mixed(probed[True], val_records))
    write_records(cfg.data, "sight", held_out)
    # no picture is in both files of prompts
    to_ask, to_ask_val = chosen[n + n_val:], chosen[n:n + n_val]
    for name, lines, others_of in (
        ("prompts", prompts, to_ask_val), ("prompts_val", prompts_val, to_ask)
    ):
        elsewhere = {r["image"] for r in others_of}
        others = [q for q in older[name] if q["image"] not in elsewhere]
        # two files that number their questions by picture
        write_records(cfg.data, f"sight_{name}",
                      (q | {"id": f"{'sight' if 'sight' in q else 'old'}-{q['id']}"}
                       for q in mixed(lines, others)))
    shares = {sight: sum(x) / len(x) for sight, x in sorted(admitted.items())}
    counts = Counter(q["sight"] for q in questions)
    for sight, share in shares.items():
        print(f"{sight}: {counts[sight]} questions, an admission is taught for {share:.3f}")
    print(f"{cfg.data}: honest, honest_val, sight, sight_prompts, sight_prompts_val.jsonl, "
          f"{time.time() - began:.0f} s")
    return shares


if __name__ == "__main__":
    options.cli(main, Config)
