"""Write docs/claims.md: claims of the papers beside what was measured here.

    python results/claims.py            print
    python results/claims.py --write    write the page

A claim says that a figure is higher (or lower) one way than another. Its verdict follows from
result files by a rule, see `verdict`; nobody writes it. A claim whose files are missing stands
under "Not measured yet", with the command that makes them.
"""

import json
import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from tables import LABELS, head, line

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "claims.md"
LEAST = 0.02  # a smaller difference, with one seed, says nothing
MORE, LESS, SAME = "more", "less", "same"
ASKED = "asked here"  # no paper says so
LONG = "LLaVA, arXiv:2304.08485"


@dataclass(frozen=True)
class Side:
    """One of the two ways that a claim compares.

    label: what it is.
    files: path of its result files in results/, without -seed<n>.json.
    part: "figures", "blind" (the same model, shown gray pictures) or "chance".
    shared: whether all seeds of the other side begin with this one model, measured once.
    """

    label: str
    files: str
    part: str = "figures"
    shared: bool = False


@dataclass(frozen=True)
class Claim:
    """The first side has more of the figure than the second, or less, or as much.

    claim: as the source has it.
    source: where it stands, and how large it is there.
    figure: key of a result file's figures.
    says: MORE, LESS or SAME: what the source says the first side has of it.
    made: the command that writes the files.
    """

    claim: str
    source: str
    figure: str
    says: str
    first: Side
    second: Side
    made: str


SFT = Side("SFT", "book/sft")
RUN = "results/make.sh"
ALL, CHAIR = "followed/all", "chair/chair_i"

SECTIONS: dict[str, list[Claim]] = {}


def claims_about(section: str, *claims: Claim) -> None:
    """Add claims under a headline."""
    SECTIONS.setdefault(section, []).extend(claims)


claims_about(
    "Pictures and captions",
    Claim("InfoNCE finds the caption of a picture", "CLIP, arXiv:2103.00020",
          "retrieval/image_to_text_r1", MORE, Side("CLIP", "book/clip"),
          Side("gray pictures", "book/clip", "blind"), RUN),
    Claim("and classifies what it never saw named together", "CLIP, arXiv:2103.00020",
          "zero_shot/held_out", MORE, Side("CLIP", "book/clip"),
          Side("gray pictures", "book/clip", "blind"), RUN),
    *(Claim(f"SigLIP's loss finds captions better, {n} pairs a batch",
            "SigLIP, arXiv:2303.15343: by a wide margin below 16,000 pairs",
            "retrieval/image_to_text_r1", MORE, Side("SigLIP", f"siglip/siglip-{n}"),
            Side("InfoNCE", f"siglip/infonce-{n}"), "results/siglip.sh")
      for n in (32, 128, 512)),
    Claim("A cropped picture is worse than a stretched one",
          "Prismatic, arXiv:2402.07865", "retrieval/image_to_text_r1", LESS,
          Side("cropped", "wide/crop"), Side("stretched", "wide/stretch"), "results/wide.sh"),
    Claim("Padding is not better than stretching", "Prismatic, arXiv:2402.07865: p = .018",
          "retrieval/image_to_text_r1", LESS, Side("padded", "wide/pad"),
          Side("stretched", "wide/stretch"), "results/wide.sh"),
    Claim("A prefix-LM captions better than a plain one", "SimVLM, arXiv:2108.10904",
          "captions/cider", MORE, Side("prefix-LM", "captions/prefix_lm"),
          Side("LM", "captions/lm"), "results/captions.sh"),
    Claim("Captions filtered and written anew train better",
          "BLIP, arXiv:2201.12086: CIDEr 127.8, 129.7", "captions/cider", MORE,
          Side("CapFilt", "captions/capfilt"), Side("web", "captions/web"),
          "results/captions.sh"),
)
claims_about(
    "Instructions",
    Claim("Who was taught captions alone does not answer \"what is unusual here?\"",
          LONG, "answers/what_strange", LESS,
          Side("captioner", "book/caption"), SFT, RUN),
    Claim("nor any other question", LONG, ALL, LESS,
          Side("captioner", "book/caption"), SFT, RUN),
    Claim("Instruction tuning lights up what pretraining knows: a chatbot tells facts that no "
          "dialogue tells", f"{LONG}; LIMA, arXiv:2305.11206", "answers/untold", MORE,
          SFT, Side("never read a text", "book/unread"), RUN),
    Claim("It looks at the picture to do so", LONG, "answers/untold", MORE, SFT,
          Side("gray pictures", "book/sft", "blind"), RUN),
    Claim("A connector stage before SFT helps",
          f"{LONG}: ScienceQA 90.92, without it 85.81; Prismatic, arXiv:2402.07865: one stage "
          "is better", ALL, MORE, Side("with 3a", "ablation/full"),
          Side("without", "ablation/no_3a"), "results/ablation.sh"),
    Claim("It helps after 600 steps of SFT", f"{LONG}; Prismatic, arXiv:2402.07865: no", ALL, MORE,
          Side("with 3a", "choices/placed"), Side("without", "choices/no_connector"),
          "results/choices.sh"),
    Claim("A projector of two maps is better than one of one map",
          "LLaVA-1.5, arXiv:2310.03744: MME 1323.8, 1355.2", ALL, MORE,
          Side("two", "choices/mlp"), Side("one", "choices/linear"), "results/choices.sh"),
    Claim("Training the eyes in SFT is worse than freezing them",
          "Prismatic, arXiv:2402.07865: p = .0038, most where places are asked", "answers/position",
          LESS, Side("trained", "choices/eyes"), Side("frozen", "choices/placed"),
          "results/choices.sh"),
    *(Claim(f"All three types of dialogues are better than without {name}",
            f"{LONG}: 85.1 with all", ALL, MORE,
            Side("all", "instruct/held_out_30000"), Side("without", f"instruct/held_out_no_{key}"),
            "results/instruct.sh")
      for key, name in (("conversation", "conversations"), ("detail", "descriptions"),
                        ("reasoning", "reasoning"))),
    Claim("Few dialogues are enough: thirty times as many do not help",
          "LIMA, arXiv:2305.11206: 1,000 examples", ALL, SAME,
          Side("30,000", "instruct/held_out_30000"), Side("1,000", "instruct/held_out_1000"),
          "results/instruct.sh"),
)
claims_about(
    "Preferences",
    *(Claim(f"{label} invents less", source, CHAIR, LESS, Side(label, f"book/{name}"), SFT, RUN)
      for name, label, source in (
          ("ppo", "PPO", "LLaVA-RLHF, arXiv:2309.14525"),
          ("dpo", "DPO", "Silkie, arXiv:2312.10665; RLHF-V, arXiv:2312.00849: -34.8 %"))),
    *(Claim(f"{label} {words}", source, figure, MORE, Side(label, f"book/{name}"), SFT, RUN)
      for name, label in (("ppo", "PPO"), ("dpo", "DPO"))
      for words, source, figure in (
          ("is more helpful: names more of what is there",
           "LLaVA-RLHF, arXiv:2309.14525; Silkie, arXiv:2312.10665", "chair/recall"),
          ("does more of what is asked, rightly", ASKED, ALL),
          ("refuses more of what must be refused", ASKED, "refused/due"))),
    Claim("Preference tuning can do without looking: DPO with gray pictures invents as much less",
          "mDPO, arXiv:2406.11839: like scores with pictures removed", CHAIR, SAME,
          Side("gray DPO", "looking/gray"), Side("DPO", "looking/dpo"), "results/looking.sh"),
    Claim("PPO with a reward model that is told facts invents less",
          "LLaVA-RLHF, arXiv:2309.14525: MMHal 1.8, 2.1", CHAIR, LESS,
          Side("facts", "dpo/ppo_facts"), Side("without", "dpo/ppo"), "results/dpo.sh"),
)
_before = Side("SFT", "grpo/sft", shared=True)
_group = {"grpo": ("GRPO", "DeepSeekMath, arXiv:2402.03300"),
          "dr_grpo": ("Dr. GRPO", "arXiv:2503.20783"),
          "rloo": ("RLOO", "Ahmadian et al., arXiv:2402.14740")}
claims_about(
    "Preferences",
    *(Claim(f"PPO invents less, whatever the seed and the rounding ({words})",
            "LLaVA-RLHF, arXiv:2309.14525", CHAIR, LESS, Side("PPO", f"ppo/{n}"),
            Side("SFT", "ppo/sft", shared=True), "results/ppo.sh")
      for n, words in ((1, "1 thread"), (2, "2 threads"))),
)
claims_about(
    "Rewards that can be checked",
    *(Claim(f"{label} answers more questions rightly", source, ALL, MORE,
            Side(label, f"grpo/{name}"), _before, "results/grpo.sh")
      for name, (label, source) in _group.items()),
    Claim("GRPO invents less", "R1-V, 2025: counting things in pictures", CHAIR, LESS,
          Side("GRPO", "grpo/grpo"), _before, "results/grpo.sh"),
    Claim("RLOO, without a value model, is better than PPO with the same reward model",
          "Ahmadian et al., arXiv:2402.14740", ALL, MORE, Side("RLOO", "grpo/rloo_reward"),
          Side("PPO", "grpo/ppo"), "results/grpo.sh"),
    Claim("The best of 16 answers, by the reward model, invents less",
          "Stiennon et al., arXiv:2009.01325; Gao et al., arXiv:2210.10760", CHAIR, LESS,
          Side("best of 16", "grpo/best16"), _before, "results/grpo.sh"),
    Claim("It invents less than PPO with that reward model", ASKED, CHAIR, LESS,
          Side("best of 16", "grpo/best16"), Side("PPO", "grpo/ppo"), "results/grpo.sh"),
)
_honest = Side("R-Tuning", "honesty/sft")
_plain = Side("before", "honesty/before", shared=True)
_TUNED = "R-Tuning, arXiv:2311.09677; Visual-Idk, arXiv:2604.26419: truthful 57.9, 67.3 %"
claims_about(
    "Saying \"not sure\"",
    Claim("Probed and taught, a chatbot says \"not sure\" of what is hardly visible", _TUNED,
          "sight/hardly_unsure", MORE, _honest, _plain, "results/honesty.sh"),
    Claim("and answers wrongly less often", _TUNED, "sight/hardly_wrong", LESS, _honest, _plain,
          "results/honesty.sh"),
    Claim("What it still answers is right more often", _TUNED, "sight/answered", MORE, _honest,
          _plain, "results/honesty.sh"),
    Claim("The price: it is unsure of clear things, too", "CRaFT: over-refusal is the known price",
          "sight/clear_unsure", MORE, _honest, _plain, "results/honesty.sh"),
    *(Claim(f"{label} behind it answers wrongly less often",
            "Visual-Idk, arXiv:2604.26419: DPO behind SFT", "sight/hardly_wrong", LESS,
            Side(label, f"honesty/{name}"), _honest, "results/honesty.sh")
      for name, label in (("dpo", "DPO"), ("ppo", "PPO"), ("dr_grpo8", "Dr. GRPO"))),
    Claim("Advantages divided by their deviation favor groups of nearly equal answers: fewer "
          "admissions", "Dr. GRPO, arXiv:2503.20783", "sight/hardly_unsure", LESS,
          Side("GRPO", "honesty/grpo9"), Side("Dr. GRPO", "honesty/dr_grpo9"),
          "results/honesty.sh"),
)


# --- verdicts ---


def values(side: Side, figure: str) -> dict[int, float]:
    """The figure of each seed; {} where a file is missing or lacks it."""
    found = {}
    folder, name = side.files.split("/")
    for path in sorted((HERE / folder).glob(f"{name}-seed*.json")):
        report = json.loads(path.read_text())
        if figure in report[side.part]:
            seed = int(re.search(r"-seed(\d+)$", path.stem)[1])
            found[seed] = report[side.part][figure]
    return found


def verdict(first: dict[int, float], second: dict[int, float], says: str) -> str:
    """Say whether the first side has more of a figure than the second, or less, or as much.

    Seeds that both sides have are compared one by one. A difference counts if its mean is above
    twice its standard error and all seeds agree in its sign; with one seed, if it is above
    LEAST.

    Args:
        first, second: seed -> the figure.
        says: MORE, LESS or SAME, of the first side.

    >>> verdict({0: 0.9, 1: 0.8}, {0: 0.5, 1: 0.4}, MORE)
    'borne out'
    >>> verdict({0: 0.5}, {0: 0.9, 1: 0.7}, MORE)
    'the opposite (1 seed)'
    >>> verdict({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.9}, MORE)
    'no difference'
    >>> verdict({0: 0.9, 1: 0.8}, {0: 0.8, 1: 0.9}, SAME)
    'borne out'
    """
    seeds = sorted(first.keys() & second.keys())
    sign = -1 if says == LESS else 1
    gaps = [sign * (first[seed] - second[seed]) for seed in seeds]
    mean = statistics.fmean(gaps)
    if len(gaps) == 1:
        counts = abs(mean) > LEAST
    else:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        counts = abs(mean) > 2 * error and len({gap > 0 for gap in gaps}) == 1
    if says == SAME:
        text = "more" if mean > 0 else "less"
        text = f"no: {text}" if counts else "borne out"
    else:
        text = "no difference" if not counts else "borne out" if mean > 0 else "the opposite"
    return text if len(gaps) > 1 else f"{text} (1 seed)"


# --- the page ---


def number(found: dict[int, float]) -> str:
    """Mean, standard deviation and number of seeds."""
    mean = f"{statistics.fmean(found.values()):.3f}"
    if len(found) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(found.values()):.3f} ({len(found)} seeds)"


def row(claim: Claim) -> tuple[str, str] | None:
    """The line of a table and its verdict, or None if the claim was not measured."""
    first, second = (values(side, claim.figure) for side in (claim.first, claim.second))
    if claim.second.shared and second:
        second = dict.fromkeys(first, second[0])
    seeds = first.keys() & second.keys()
    if not seeds:
        return None
    first, second = ({seed: found[seed] for seed in seeds} for found in (first, second))
    once = f"{second[0]:.3f}" if claim.second.shared else number(second)
    measured = (f"{LABELS.get(claim.figure, claim.figure)}: "
                f"{claim.first.label} {number(first)}, {claim.second.label} {once}")
    told = verdict(first, second, claim.says)
    return line([claim.claim, claim.source, measured, told, f"`{claim.made}`"]), told


def page() -> str:
    """The whole page."""
    parts = [
        "# Claims of the recipe, and what was measured here",
        "Written by `python results/claims.py --write` from the files in `results/`. A cell is "
        "the mean over the seeds ± their standard deviation. A verdict follows from a rule: "
        "the difference counts if all seeds agree in its sign and its mean is above twice its "
        f"standard error; with one seed, if it is above {LEAST}. What holds for two million "
        "weights and drawn pictures need not hold elsewhere, nor the other way round.",
    ]
    missing, tables, verdicts = [], [], []
    for section, claims in SECTIONS.items():
        rows = [row(claim) for claim in claims]
        missing += [claim for claim, found in zip(claims, rows) if found is None]
        measured = [found for found in rows if found]
        if measured:
            table = head(["claim", "source", "here", "verdict", "made by"])
            table += [text for text, _ in measured]
            tables += [f"## {section}", "\n".join(table)]
            verdicts += [told for _, told in measured]
    n = {word: sum(told.startswith(word) for told in verdicts)
         for word in ("borne out", "no difference", "the opposite", "no: ")}
    parts.append(
        f"Of {len(verdicts)} claims that were measured {n['borne out']} are borne out; of "
        f"{n['no difference']} no difference is seen, and of "
        f"{n['the opposite'] + n['no: ']} the opposite. {len(missing)} wait for a "
        "measurement."
    )
    parts += tables
    if missing:
        table = head(["claim", "source", "would be made by"])
        table += [line([c.claim, c.source, f"`{c.made}`"]) for c in missing]
        parts += ["## Not measured yet", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    elif sys.argv[1:]:
        sys.exit(f"claims.py: error: unknown arguments {' '.join(sys.argv[1:])}; only --write")
    else:
        print(page())
