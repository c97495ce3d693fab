"""Write docs/claims.md: claims of the papers beside what was measured here.

    python results/claims.py            print
    python results/claims.py --write    write the page

A claim says that a figure is higher (or lower) one way than another. Its verdict follows from
result files by a rule, see `verdict`; nobody writes it. A claim whose files are missing stands
under "Not measured yet", with the command that makes them.
"""

import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from tables import LABELS, OLDER, REWARD, head, line, read_log, read_result

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
    files: path of its result files in results/, without -seed<n>.json, or of its logs, without
        -seed<n>.csv; of a log the row with the lowest held-out loss counts.
    part: "figures", "blind" (the same model, shown gray pictures) or "chance".
    shared: whether all seeds of the other side begin with this one model, measured once.
    figure: key of this side's figure, where it differs from the claim's.
    value: a number to compare with, instead of files.
    """

    label: str
    files: str
    part: str = "figures"
    shared: bool = False
    figure: str = ""
    value: float | None = None


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
ALL, CHAIR, DETAIL = "followed/all", "chair/chair_i", "chair_detail/chair_i"
NAMES = LABELS | REWARD | {
    "gain": "gain in true score, in points", "true/64": "true score (1 .. 5)",
}

SECTIONS: dict[str, list[Claim]] = {}


def claims_about(section: str, made: str, *claims: tuple) -> None:
    """Add claims under a headline, each as the fields of Claim without the last."""
    SECTIONS.setdefault(section, []).extend(Claim(*fields, made) for fields in claims)


def side(script: str, name: str, label: str, **more) -> Side:
    """A side whose files results/<script>.sh has written."""
    return Side(label, f"{script}/{name}", **more)


claims_about(
    "Pictures and captions", RUN,
    ("InfoNCE finds the caption of a picture", "CLIP, arXiv:2103.00020",
     "retrieval/image_to_text_r1", MORE, Side("CLIP", "book/clip"),
     Side("gray pictures", "book/clip", "blind")),
    ("and classifies what it never saw named together", "CLIP, arXiv:2103.00020",
     "zero_shot/held_out", MORE, Side("CLIP", "book/clip"),
     Side("gray pictures", "book/clip", "blind")),
)
claims_about(
    "Pictures and captions", "results/siglip.sh",
    *((f"SigLIP's loss finds captions better, {n} pairs a batch",
       "SigLIP, arXiv:2303.15343: by a wide margin below 16,000 pairs",
       "retrieval/image_to_text_r1", MORE, side("siglip", f"siglip-{n}", "SigLIP"),
       side("siglip", f"infonce-{n}", "InfoNCE")) for n in (32, 128, 512)),
)
claims_about(
    "Pictures and captions", "results/wide.sh",
    ("A cropped picture is worse than a stretched one", "Prismatic, arXiv:2402.07865",
     "retrieval/image_to_text_r1", LESS, side("wide", "crop", "cropped"),
     side("wide", "stretch", "stretched")),
    ("Padding is not better than stretching", "Prismatic, arXiv:2402.07865: p = .018",
     "retrieval/image_to_text_r1", LESS, side("wide", "pad", "padded"),
     side("wide", "stretch", "stretched")),
)
_told = side("sizes", "75", "three quarters")
claims_about(
    "Pictures and captions", "results/sizes.sh",
    ("What no caption of stages 1 and 2 tells, SFT does not see: sizes",
     "Eyes Wide Shut, arXiv:2401.06209", "answers/size", LESS, side("sizes", "0", "none"), _told),
    ("nor does it if it trains the ViT, too", "Eyes Wide Shut, arXiv:2401.06209", "answers/size",
     LESS, side("sizes", "eyes", "none, ViT trained"), _told),
    ("A quarter of the captions is too little", ASKED, "answers/size", LESS,
     side("sizes", "25", "a quarter"), _told),
)
_web = side("captions", "web", "as found")
_both = side("captions", "capfilt", "both")
_BLIP = "BLIP, arXiv:2201.12086: CIDEr 127.8"
claims_about(
    "Pictures and captions", "results/captions.sh",
    ("A prefix-LM captions better than a plain one", "SimVLM, arXiv:2108.10904",
     "captions/cider", MORE, side("captions", "prefix_lm", "prefix-LM"),
     side("captions", "lm", "LM")),
    ("and SFT behind it answers better", "SimVLM, arXiv:2108.10904", ALL, MORE,
     side("captions", "sft_prefix_lm", "prefix-LM"), side("captions", "sft_lm", "LM")),
    ("SFT behind BLIP's three losses answers better than behind LM alone", ASKED, ALL, MORE,
     side("captions", "sft_blip", "BLIP"), side("captions", "sft_lm", "LM")),
    ("Web captions that are filtered train better", f"{_BLIP}, 128.2", "captions/cider", MORE,
     side("captions", "filtered", "filtered"), _web),
    ("Captions written beside them train better", f"{_BLIP}, 128.9", "captions/cider", MORE,
     side("captions", "captioned", "written"), _web),
    ("Both (CapFilt) train better", f"{_BLIP}, 129.7", "captions/cider", MORE, _both, _web),
    ("Both are better than the filter alone", "BLIP, arXiv:2201.12086: CIDEr 129.7, 128.2",
     "captions/cider", MORE, _both, side("captions", "filtered", "filtered")),
    ("Beam search writes fewer false captions than sampling",
     "BLIP, arXiv:2201.12086: its filter rejects 19 %, 25 %", "synthetic_false", LESS,
     side("captions", "filter_beam", "beam"), side("captions", "filter_capfilt", "sampling")),
    ("and its captions train worse", "BLIP, arXiv:2201.12086: CIDEr 128.9, 129.7",
     "captions/cider", LESS, side("captions", "beam", "beam"), _both),
)
claims_about(
    "Instructions", RUN,
    ("Who was taught captions alone does not answer \"what is unusual here?\"",
     LONG, "answers/what_strange", LESS, Side("captioner", "book/caption"), SFT),
    ("nor any other question", LONG, ALL, LESS, Side("captioner", "book/caption"), SFT),
    ("Instruction tuning lights up what pretraining knows: a chatbot tells facts that no "
     "dialogue tells", f"{LONG}; LIMA, arXiv:2305.11206", "answers/untold", MORE, SFT,
     Side("never read a text", "book/unread")),
    ("It looks at the picture to do so", LONG, "answers/untold", MORE, SFT,
     Side("gray pictures", "book/sft", "blind")),
)
_PRISMATIC = "Prismatic, arXiv:2402.07865"
claims_about(
    "Instructions", "results/choices.sh",
    ("A connector stage before SFT helps, 600 steps",
     f"{LONG}: ScienceQA 90.92, without it 85.81; {_PRISMATIC}: one stage is better", ALL, MORE,
     side("choices", "placed", "with 3a"), side("choices", "no_connector", "without")),
    ("and after 150 steps", f"{LONG}; {_PRISMATIC}", ALL, MORE,
     side("choices", "few", "with 3a"), side("choices", "few_no_connector", "without")),
    ("and behind a language model that has read little", f"{LONG}; {_PRISMATIC}", ALL, MORE,
     side("choices", "young", "with 3a"), side("choices", "young_no_connector", "without")),
    ("and where SFT has a thousand dialogues", f"{LONG}; {_PRISMATIC}", ALL, MORE,
     side("choices", "thousand", "with 3a"), side("choices", "thousand_no_connector", "without")),
    ("and where SFT trains the projector alone", f"{LONG}; {_PRISMATIC}", ALL, MORE,
     side("choices", "frozen", "with 3a"), side("choices", "frozen_no_connector", "without")),
    ("A projector of two maps is better than one of one map",
     "LLaVA-1.5, arXiv:2310.03744: MME 1323.8, 1355.2", ALL, MORE, side("choices", "mlp", "two"),
     side("choices", "linear", "one")),
    ("Eyes that contrastive learning has not trained are worse, even if SFT trains them",
     ASKED, ALL, LESS, side("choices", "random", "no stage 1"), side("choices", "eyes", "stage 1")),
    ("The ViT's last layer is worse than the last but one", f"{LONG}: -0.96", ALL, LESS,
     side("choices", "layer1", "last"), side("choices", "placed", "last but one")),
    ("So is the last but two", ASKED, ALL, LESS, side("choices", "layer3", "last but two"),
     side("choices", "placed", "last but one")),
)
_plain = side("sft", "default", "as by default")
claims_about(
    "Instructions", "results/sft.sh",
    ("Training the eyes in SFT is worse than freezing them",
     f"{_PRISMATIC}: p = .0038, most where places are asked", "answers/position", LESS,
     side("sft", "eyes", "trained"), side("sft", "default", "frozen")),
    ("The conclusion first, and then what is seen, is as good",
     f"{LONG}: both 89.77, but reasoning first in half the epochs", "answers/exist", SAME,
     side("sft", "answer_first", "conclusion first"),
     side("sft", "default", "what is seen first")),
    ("Nine of ten questions answered with yes teach to say yes",
     "LLaVA-RLHF, arXiv:2309.14525: LLaVA says yes in 99 %, POPE adversarial", "pope_random/yes",
     MORE, side("sft", "yes", "nine of ten"), _plain),
    ("Then absent things that often occur beside the others are invented most",
     "POPE, arXiv:2305.10355", "pope_adversarial/f1", LESS, side("sft", "yes", "adversarial"),
     side("sft", "yes", "random", figure="pope_random/f1")),
    ("Few balanced steps repair it", ASKED, "pope_random/yes", LESS,
     side("sft", "no_more", "150 steps more"), side("sft", "yes", "nine of ten")),
)
claims_about(
    "Instructions", "results/instruct.sh",
    *((f"All three types of dialogues are better than without {name}",
       f"{LONG}: 85.1 with all", ALL, MORE, side("instruct", "held_out_30000", "all"),
       side("instruct", f"held_out_no_{key}", "without"))
      for key, name in (("conversation", "conversations"), ("detail", "descriptions"),
                        ("reasoning", "reasoning"))),
    ("Few dialogues are enough: thirty times as many do not help",
     "LIMA, arXiv:2305.11206: 1,000 examples", ALL, SAME,
     side("instruct", "held_out_30000", "30,000"), side("instruct", "held_out_1000", "1,000")),
)
_RLHF = "LLaVA-RLHF, arXiv:2309.14525"
_SILKIE = "Silkie, arXiv:2312.10665"
claims_about(
    "Preferences", RUN,
    *((f"{label} invents less", source, CHAIR, LESS, Side(label, f"book/{name}"), SFT)
      for name, label, source in (
          ("ppo", "PPO", _RLHF), ("dpo", "DPO", f"{_SILKIE}; RLHF-V, arXiv:2312.00849: -34.8 %"))),
    *((f"{label} {words}", source, figure, MORE, Side(label, f"book/{name}"), SFT)
      for name, label in (("ppo", "PPO"), ("dpo", "DPO"))
      for words, source, figure in (
          ("is more helpful: names more of what is there", f"{_RLHF}; {_SILKIE}", "chair/recall"),
          ("does more of what is asked, rightly", ASKED, ALL),
          ("refuses more of what must be refused", ASKED, "refused/due"))),
    ("PPO says yes less often", f"{_RLHF}: 47 %, 42 %", "pope_random/yes", LESS,
     Side("PPO", "book/ppo"), SFT),
)
_before = side("ppo", "sft", "SFT", shared=True)
claims_about(
    "Preferences", "results/ppo.sh",
    *((f"PPO invents less, whatever the seed and the rounding ({words})", _RLHF, figure, LESS,
       side("ppo", f"{n}", "PPO"), _before)
      for n, words in ((1, "1 thread"), (2, "2 threads")) for figure in (DETAIL, CHAIR)),
    ("and answers as many questions rightly", ASKED, ALL, SAME, side("ppo", "1", "PPO"), _before),
)
_reward = side("preferences", "reward", "every token")
_dpo = side("dpo", "dpo", "DPO")
claims_about(
    "Preferences", "results/preferences.sh",
    ("A reward model that reads every token of an answer judges better than one that reads the "
     "last", "InstructGPT, arXiv:2203.02155: the last", "truth/all", MORE, _reward,
     side("preferences", "reward_last", "last token")),
    ("It seldom prefers a description that leaves out what is plain to see", ASKED,
     "left_out/clear", LESS, side("preferences", "leave_out_reward", "every token"),
     side("preferences", "leave_out_reward_last", "last token")),
    ("and more often one that leaves out what is hardly visible", ASKED, "left_out/hardly", MORE,
     side("preferences", "leave_out_reward", "every token"),
     side("preferences", "leave_out_reward_last", "last token")),
    ("One that is told captions judges better", f"{_RLHF}, section 3.2", "truth/all", MORE,
     side("preferences", "reward_facts", "facts"), _reward),
    ("and PPO with it invents less", f"{_RLHF}: MMHal 1.8, 2.1", DETAIL, LESS,
     side("preferences", "facts", "facts"), side("ppo", "1", "without")),
    ("More rankings make a better judge", "Gao et al., arXiv:2210.10760, figure 6", "truth/all",
     MORE, _reward, side("preferences", "reward_500", "500 rankings")),
    ("The best of 64 answers by it gains more", "Gao et al., arXiv:2210.10760", "gain", MORE,
     side("preferences", "best_of_n_reward", "all 4,300"),
     side("preferences", "best_of_n_reward_500", "500")),
    ("Past some n the answer that the reward model likes best is truly worse",
     "Gao et al., arXiv:2210.10760", "true/64", LESS,
     side("preferences", "best_of_n_reward", "of 64"),
     side("preferences", "best_of_n_reward", "of 4", figure="true/4")),
    ("Without the KL penalty PPO unlearns what it knew", ASKED, ALL, LESS,
     side("preferences", "kl0", "no penalty"),
     side("preferences", "kl1", ".1")),
    ("Three times as many rollouts invent less", ASKED, DETAIL, LESS,
     side("preferences", "long", "210"), side("ppo", "1", "70")),
    ("A penalty for each token makes PPO's answers invent less", f"{_RLHF}, section 3.2", DETAIL,
     LESS, side("preferences", "short", ".01 a token"), side("ppo", "1", "none")),
    ("Without the penalty for an answer without an end PPO is as good", ASKED, ALL, SAME,
     side("preferences", "no_end", "without"), side("ppo", "1", "with")),
    ("PPO teaches a captioner no chat", ASKED, ALL, SAME, side("preferences", "caption", "PPO"),
     side("preferences", "captioner", "captioner")),
)
claims_about(
    "Preferences", "results/dpo.sh",
    *((f"A judge likes the answers of {label} better than those of SFT", source,
       "axes/preference/win_rate", MORE, side("dpo", name, label),
       Side("as often as not", "", value=0.5))
      for name, label, source in (("dpo", "DPO", _SILKIE), ("ppo", "PPO", _RLHF))),
    ("DPO invents less, asked for details", f"{_SILKIE}; RLHF-V, arXiv:2312.00849: -34.8 %",
     DETAIL, LESS, _dpo, side("dpo", "sft", "SFT", shared=True)),
    ("Preference tuning can do without looking: DPO with gray pictures invents as much less",
     "mDPO, arXiv:2406.11839: like scores with pictures removed", DETAIL, SAME,
     side("dpo", "gray", "gray DPO"), _dpo),
    *((claim, source, DETAIL, says, side("dpo", name, label), second)
      for claim, source, says, name, label, second in (
          ("DPO of whole answers invents more than dense DPO", "RLHF-V, arXiv:2312.00849", MORE,
           "plain", "plain", _dpo),
          ("and with a third of its beta", "RLHF-V, arXiv:2312.00849", MORE, "plain_1", "plain",
           _dpo),
          ("KTO, which needs no pairs, invents as little", "KTO, arXiv:2402.01306", SAME, "kto",
           "KTO", _dpo),
          ("and with four times the beta", "KTO, arXiv:2402.01306", SAME, "kto_20", "KTO", _dpo),
          ("IPO invents as little", "IPO, arXiv:2310.12036", SAME, "ipo", "IPO", _dpo),
          ("and with a tenth of the beta", "IPO, arXiv:2310.12036", SAME, "ipo_half", "IPO",
           _dpo),
          ("Pairs that differ in the picture alone help", "mDPO, arXiv:2406.11839: .56, .42",
           LESS, "pictures", "with them", _dpo),
          ("Adapters invent as little as all weights", "LoRA, arXiv:2106.09685", SAME, "lora",
           "LoRA", _dpo),
          ("A judge that guesses a fifth of its ratings is enough", f"{_SILKIE}: GPT-4V", LESS,
           "judge2", "judge", side("dpo", "sft", "SFT")),
          ("but not one that guesses four of five", ASKED, MORE, "judge8", ".8",
           side("dpo", "judge0", "none")),
          ("A pool of chatbots is better than one", _SILKIE, LESS, "silkie", "SFT and PPO",
           side("dpo", "judge2", "SFT")),
          ("A second round invents less", "RLAIF-V, arXiv:2405.17220", LESS, "round2", "second",
           _dpo),
          ("and a third", "RLAIF-V, arXiv:2405.17220", LESS, "round3", "third",
           side("dpo", "round2", "second")))),
)
_before = side("grpo", "sft", "SFT", shared=True)
_grpo = side("grpo", "grpo", "GRPO")
_ppo = side("grpo", "ppo", "PPO")
_RLOO = "Ahmadian et al., arXiv:2402.14740"
_CHU = "Chu et al., arXiv:2501.17161"
_BEST = "Stiennon et al., arXiv:2009.01325; Gao et al., arXiv:2210.10760"
claims_about(
    "Rewards that can be checked", "results/grpo.sh",
    *((f"{label} answers more questions rightly", source, ALL, MORE,
       side("grpo", name, label), _before)
      for name, label, source in (
          ("grpo", "GRPO", "DeepSeekMath, arXiv:2402.03300"),
          ("dr_grpo", "Dr. GRPO", "arXiv:2503.20783"), ("rloo", "RLOO", _RLOO))),
    ("RL answers better than SFT that goes on as long", ASKED, ALL, MORE, _grpo,
     side("grpo", "more", "more SFT")),
    ("RL generalizes and SFT memorizes, both trained on the same questions: in unseen phrasings RL "
     "is better", _CHU, ALL, MORE, _grpo, side("grpo", "told", "SFT")),
    ("in taught ones SFT is", _CHU, ALL, LESS, side("grpo", "quiz_grpo", "GRPO"),
     side("grpo", "quiz_told", "SFT")),
    ("about colored things that training never shows, RL", _CHU, ALL, MORE,
     side("grpo", "unseen_grpo", "GRPO"), side("grpo", "unseen_told", "SFT")),
    ("when counting, RL", _CHU, "answers/count", MORE, _grpo, side("grpo", "told", "SFT")),
    *((f"{label} makes a chatbot {words} calibrated", source, "calibration/error", says,
       side("grpo", f"quiz_{name}", label), side("grpo", "quiz_sft", "SFT", shared=True))
      for name, label, words, source, says in (
          ("ppo", "PPO", "worse", "GPT-4, arXiv:2303.08774, figure 8: .007, .074", MORE),
          ("grpo", "GRPO", "better", ASKED, LESS))),
    *((f"GRPO invents less{words}", "R1-V, 2025: counting things in pictures", figure, LESS,
       _grpo, _before) for words, figure in (("", CHAIR), (", asked for details", DETAIL))),
    *((f"Of 512 answers, {k} to a prompt teach less than 2 to each of more prompts",
       "arXiv:2510.00977: 2 do as well as 16, in a fifth of the time", ALL, LESS,
       side("grpo", f"k{k}", f"{k}"), _grpo) for k in (8, 16)),
    ("RLOO, without a value model, is better than PPO with the same reward model", _RLOO, ALL,
     MORE, side("grpo", "rloo_reward", "RLOO"), _ppo),
    ("and with PPO's KL penalty", _RLOO, ALL, MORE, side("grpo", "rloo_reward3", "RLOO"), _ppo),
    ("and with it as a part of the reward, as PPO has it", _RLOO, ALL, MORE,
     side("grpo", "rloo_in_reward", "RLOO"), _ppo),
    ("A KL penalty that is subtracted from the reward keeps more skills than a k3 loss",
     "arXiv:2506.09477", ALL, MORE, side("grpo", "rloo_in_reward", "reward"),
     side("grpo", "rloo_reward3", "loss")),
    ("The best of 16 answers, by the reward model, invents less", _BEST, DETAIL, LESS,
     side("grpo", "best16", "best of 16"), _before),
    ("It invents less than PPO with that reward model", ASKED, DETAIL, LESS,
     side("grpo", "best16", "best of 16"), _ppo),
)
_honest = side("honesty", "sft", "R-Tuning")
_first = side("honesty", "before", "before", shared=True)
_TUNED = "R-Tuning, arXiv:2311.09677; Visual-Idk, arXiv:2604.26419: truthful 57.9, 67.3 %"
claims_about(
    "Saying \"not sure\"", "results/honesty.sh",
    ("Probed and taught, a chatbot says \"not sure\" of what is hardly visible", _TUNED,
     "sight/hardly_unsure", MORE, _honest, _first),
    ("and answers wrongly less often", _TUNED, "sight/hardly_wrong", LESS, _honest, _first),
    ("What it still answers is right more often", _TUNED, "sight/answered", MORE, _honest,
     _first),
    ("The price: it is unsure of clear things, too", "CRaFT: over-refusal is the known price",
     "sight/clear_unsure", MORE, _honest, _first),
    *((f"{label} behind it answers wrongly less often",
       "Visual-Idk, arXiv:2604.26419: DPO behind SFT", "sight/hardly_wrong", LESS,
       side("honesty", name, label), _honest)
      for name, label in (("dpo", "DPO"), ("ppo", "PPO"), ("dr_grpo75", "Dr. GRPO"))),
    ("Advantages divided by their deviation favor groups of nearly equal answers: fewer "
     "admissions", "Dr. GRPO, arXiv:2503.20783", "sight/hardly_unsure", LESS,
     side("honesty", "grpo8", "GRPO"), side("honesty", "dr_grpo8", "Dr. GRPO")),
)


# what can be proved, and a test that does so on small numbers: claim, source, test
EXACT = [
    ("DPO on people's choices by Bradley and Terry's rule has the optimum of the KL-regularized "
     "reward", "DPO, arXiv:2305.18290, section 4",
     "tests/test_dpo.py::test_dpo_on_bradley_terry_data_finds_the_optimum_of_the_kl_regularized_"
     "problem"),
    ("PPO with a KL penalty has the same", "Ziegler et al., arXiv:1909.08593",
     "tests/test_dpo.py::test_the_fixed_point_of_ppo_is_the_same_distribution"),
    ("Robust DPO is unbiased if labels are flipped at the rate that it assumes",
     "Chowdhury et al., arXiv:2403.00409",
     "tests/test_dpo.py::test_robust_has_the_clean_loss_as_its_mean_over_flipped_labels"),
    ("Before any step GRPO's gradient is the policy gradient", "PPO, arXiv:1707.06347, section 3",
     "tests/test_grpo.py::test_before_any_step_the_gradient_is_the_policy_gradient"),
    ("The three estimates of a KL agree in the mean with the exact one", "Schulman 2020",
     "tests/test_rl.py::test_the_estimates_of_kl_agree_with_the_exact_one"),
    ("With SigLIP's loss a pair does not depend on the other pairs of the batch",
     "SigLIP, arXiv:2303.15343, section 3.2",
     "tests/test_losses.py::test_a_pair_that_is_added_leaves_the_others_pairs_alone"),
    ("A batch of pairs in parts gives the gradients of the whole batch",
     "GradCache, arXiv:2101.06983",
     "tests/test_clip.py::test_parts_give_loss_and_gradients_of_one_large_batch"),
]


# claim -> why it may differ here from what its source says
_NO_MORE = ("SFT names nearly all that is plain to see already; what it misses or sees wrongly, "
            "no preference changes")
WHY = {
    **{f"SigLIP's loss finds captions better, {n} pairs a batch":
       "Its scale and bias must be learned first, and 51,200 pairs are few steps; longer runs were "
       "not tried" for n in (32, 128, 512)},
    "PPO is more helpful: names more of what is there": _NO_MORE,
    "DPO is more helpful: names more of what is there": _NO_MORE,
    "PPO does more of what is asked, rightly": _NO_MORE,
    "DPO does more of what is asked, rightly": _NO_MORE,
    "PPO says yes less often": "Yes and no are taught equally often here, and LLaVA's data were "
                               "not; see the claims about nine yeses of ten",
    "A reward model that reads every token of an answer judges better than one that reads the "
    "last": "People's rankings seldom turn on one word; where a single sentence is left out, the "
            "two differ (next lines)",
    "One that is told captions judges better": "Captions say no more than these pictures show, "
                                               "and a longer prompt leaves less room",
    "Dr. GRPO answers more questions rightly": "It gains as much as GRPO, but with one seed that "
                                               "is too little to count",
    "A judge likes the answers of DPO better than those of SFT":
        "Nearly always both say the same, or equally good things",
    "A judge likes the answers of PPO better than those of SFT":
        "Nearly always both say the same, or equally good things",
    "Preference tuning can do without looking: DPO with gray pictures invents as much less":
        "Dense DPO weighs the words in which two answers differ; what they name can only be "
        "judged with the picture",
    "DPO of whole answers invents more than dense DPO": "Its beta, .3 a nat of a whole answer, "
        "was chosen in an earlier world",
    "IPO invents as little": "With the default beta of 5 its margins need to reach only .1 nats a "
                             "token",
    "KTO, which needs no pairs, invents as little": "It goes further with the same beta: right "
                                                    "answers fall, too",
    "and PPO with it invents less": "It judges no better, see above",
    "A prefix-LM captions better than a plain one":
        "Its loss counts only the tokens behind a prefix of random length, on average half of a "
        "caption; the LM's counts all. Both had 800 steps",
    "and SFT behind it answers better": "As above: it learns later to name things",
    "SFT behind BLIP's three losses answers better than behind LM alone":
        "In equal time BLIP takes 300 steps and LM 800, and to look a word up in the picture is "
        "learned late",
    "Both are better than the filter alone":
        "The captioner is young: three of five captions that it draws claim something false, and "
        "the filter lets nearly nine of ten pass",
    "and its captions train worse":
        "There is little to say about such a picture, so variety matters less than that fewer "
        "captions are false",
    "A connector stage before SFT helps, 600 steps":
        "Nine image tokens and a small language model: SFT learns the projector in its first "
        "hundred steps",
    "and after 150 steps": "At that point both can hardly answer",
    "and behind a language model that has read little": "One seed; how soon a skill is learned "
        "depends on chance, see the spread of 'where' in results/README.md",
    "and where SFT has a thousand dialogues":
        "A thousand dialogues teach the form of an answer, not what a picture shows: colors are "
        "right hardly more often than by chance, with the stage and without",
    "and where SFT trains the projector alone":
        "No projector makes a language model answer that has never read a dialogue: 3 of 100 "
        "answers are right, with the stage and without",
    "A projector of two maps is better than one of one map":
        "The features of nine patches need little mixing",
    "The ViT's last layer is worse than the last but one":
        "The ViT has four layers and no pretext but captions that tell everything",
    "in taught ones SFT is": "Four passes over short dialogues, half of them in other words: it "
                             "unlearns what they leave out; RL moves only what scores",
    "Of 512 answers, 16 to a prompt teach less than 2 to each of more prompts":
        "The difference is as large as that from 8, but with one seed too little to count",
    "and with PPO's KL penalty": "The gradient of the k3 loss is weak for answers that the policy "
        "gives and the reference never gave; see the next lines",
    "and with it as a part of the reward, as PPO has it": "Then both have the same penalty and "
        "lose equally little",
    "PPO makes a chatbot worse calibrated": "The penalty of .3 keeps it near the chatbot that it "
                                            "was",
    "GRPO makes a chatbot better calibrated": "The reward pays for being right, not for being as "
        "sure as one is right: whatever is drawn often and right becomes likelier still",
    "RLOO, without a value model, is better than PPO with the same reward model":
        "Its KL penalty is .1, PPO's .3: it finds answers that the reward model likes and nobody "
        "wants, as PPO without a penalty does",
    "Few balanced steps repair it":
        "Behind the captioner there is nothing to repair: captions have also taught what is not "
        "there (docs/lessons.md)",
    **{f"{name} behind it answers wrongly less often":
       "Rankings say that a right answer is better than an admission, not by how much: where two "
       "answers of five are right, it guesses again, and what it answers is right as often"
       for name in ("DPO", "PPO")},
    "RLOO answers more questions rightly": "As GRPO: most gains come from few kinds of questions; "
                                           "two of three groups are dead",
}


# --- verdicts ---


def values(side: Side, figure: str) -> dict[int, float]:
    """The figure of each seed; {} where a file is missing or lacks it."""
    found = {}
    if side.value is not None:
        return found
    folder, name = side.files.split("/")
    for path in sorted((HERE / folder).glob(f"{name}-seed*")):
        if path.suffix == ".json":
            figures = read_result(path)[side.part]
        elif path.suffix == ".csv":
            rows = [row for row in read_log(path) if figure in row]
            figures = min(rows, key=lambda row: row["val_loss"], default={})
        else:
            continue
        if figure in figures:
            found[int(re.search(r"-seed(\d+)$", path.stem)[1])] = figures[figure]
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
    first, second = (values(side, side.figure or claim.figure)
                     for side in (claim.first, claim.second))
    constant = claim.second.value
    if claim.second.shared and second:
        constant = second[0]
    if constant is not None:
        second = dict.fromkeys(first, constant)
    seeds = first.keys() & second.keys()
    if not seeds:
        return None
    first, second = ({seed: found[seed] for seed in seeds} for found in (first, second))
    once = f"{constant:.3f}" if constant is not None else number(second)
    measured = (f"{NAMES.get(claim.figure, claim.figure)}: "
                f"{claim.first.label} {number(first)}, {claim.second.label} {once}")
    told = verdict(first, second, claim.says)
    older = "*" if Path(claim.made).stem in OLDER else ""
    return line([claim.claim, claim.source, measured, told, f"`{claim.made}`{older}"]), told


def page() -> str:
    """The whole page."""
    parts = [
        "# Claims of the recipe, and what was measured here",
        "Written by `python results/claims.py --write` from the files in `results/`. A cell is "
        "the mean over the seeds ± their standard deviation. A verdict follows from a rule: "
        "the difference counts if all seeds agree in its sign and its mean is above twice its "
        f"standard error; with one seed, if it is above {LEAST}. The models have two million "
        "weights and the pictures are drawn: larger models and photographs may behave "
        "differently. A * behind a command marks older figures: at that time all prompts of "
        "stage 4 used taught phrasings.",
    ]
    missing, tables, verdicts, others = [], [], [], []
    for section, claims in SECTIONS.items():
        rows = [row(claim) for claim in claims]
        missing += [claim for claim, found in zip(claims, rows) if found is None]
        measured = [found for found in rows if found]
        others += [line([claim.claim, WHY.get(claim.claim, "not known")])
                   for claim, found in zip(claims, rows)
                   if found and not found[1].startswith("borne out") and claim.source != ASKED]
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
    if others:
        table = head(["claim that is not borne out", "the likeliest reason"])
        parts += ["## Where it differs", "The reasons are guesses.", "\n".join([*table, *others])]
    table = head(["claim", "source", "test"])
    table += [line([claim, source, f"`{test}`"]) for claim, source, test in EXACT]
    parts += ["## Shown by a test", "\n".join(table)]
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
