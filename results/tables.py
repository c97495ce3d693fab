"""Print the result tables from results/*/*.json and *.csv, or write them into the pages.

    python results/tables.py            print
    python results/tables.py --write    replace the blocks between marker comments, of README.md,
                                        README.zh.md and docs/rlhf_by_hand.md; write
                                        results/README.md

A cell is the mean over the seeds that were run, followed by their standard deviation.
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
CHINESE = HERE.parent / "README.zh.md"
BY_HAND = HERE.parent / "docs" / "rlhf_by_hand.md"
BEGIN = "<!-- results: python results/tables.py --write -->"
END = "<!-- end of results -->"
ROW_BEGIN = "<!-- row: python results/tables.py --write -->"
ROW_END = "<!-- end of row -->"
BY_HAND_BEGIN = "<!-- by hand: python results/tables.py --write -->"
BY_HAND_END = "<!-- end of by hand -->"

# --- labels: a figure's key -> what it means ---

KINDS = {  # of questions -> what is asked
    "exist": "is there a ...?",
    "negation": "is there no ...?",
    "color": "color",
    "kind": "what is the red thing?",
    "size": "size",
    "count": "how many",
    "position": "where",
    "relation": "left of, above",
    "compare_number": "more of these than of those?",
    "compare_size": "larger than?",
    "larger_of": "which of both is larger?",
    "nearer": "which of both is nearer to ...?",
    "same": "the same color, size, kind?",
    "next_to": "color of what is left of ...?",
    "odd_one_out": "which one is unlike the others?",
    "without": "how many without ...?",
    "left_without": "what would be left without ...?",
    "one_more": "how many with one more?",
    "assumed": "the question assumes what is not there",
    "strange": "is anything unusual? (says what)",
    "usual": "the same, where nothing is",
    "what_strange": "what is unusual?",
    "why_strange": "why is it unusual?",
    "belongs": "does it belong there?",
    "day_night": "day or night",
    "setting": "which place",
    "activity": "what could one do here?",
    "hear": "what could one hear here?",
    "happening": "what is going on?",
    "story": "a story",
    "fact": "a fact about a thing pointed at",
    "untold": "such a fact that only the text of stage 0 holds",
    "and_color": "and what color is it?",
    "and_size": "and how large is it?",
    "and_where": "and where is it?",
    "sure": "are you sure?",
    "why": "why?",
    "greeting": "hello",
    "thanks": "thank you",
    "bye": "goodbye",
    "who": "who are you?",
    "able": "what can you do?",
    "offer": "for anything else, an offer of what it can do",
    "unknowable": "\"not sure\" where nobody can know",
    "statement": "is this sentence, written by a person, true?",
}
MAIN = {
    "retrieval/image_to_text_r1": "picture to caption, recall@1",
    "retrieval/text_to_image_r1": "caption to picture, recall@1 (some are partial)",
    "zero_shot/seen": "zero-shot, pairs of color and thing of the training data",
    "zero_shot/held_out": "zero-shot, pairs that training never shows",
    **{f"answers/{kind}": f"answers: {words}" for kind, words in KINDS.items()},
    "followed/form": "does what was asked, mean over kinds",
    "followed/all": "does what was asked and is right, mean over kinds",
    "pope_random/f1": "POPE random, F1",
    "pope_popular/f1": "POPE popular, F1",
    "pope_adversarial/f1": "POPE adversarial, F1",
    "pope_random/yes": "POPE random: share of yes",
    "style/word": "obeys: one word",
    "style/sentence": "obeys: one sentence",
    "style/list": "obeys: a list",
    "chair/recall": "visible things named in descriptions",
    "chair/chair_i": "named things that are not visible (CHAIR_i)",
    "chair/chair_s": "descriptions that name such a thing (CHAIR_s)",
    "chair/recall_hidden": "barely visible things named in descriptions",
    "chair_detail/recall": "asked for details: visible things named",
    "chair_detail/chair_i": "asked for details: named things that are not visible (CHAIR_i)",
    "chair_detail/recall_hidden": "asked for details: barely visible things named",
    "refused/due": "refuses questions that must be refused",
    "refused/harmless": "refuses harmless questions that look similar",
}
CAPTIONS = {
    "captions/cider": "CIDEr-D (0 .. 10)",
    "captions/bleu4": "BLEU-4",
    "captions/rouge_l": "ROUGE-L",
    "captions/clip_score": "CLIPScore (0 .. 2.5), by the CLIP that all start from",
    "captions/clip_score_people": "CLIPScore of reference captions",
    "captions/recall": "visible things named in captions",
    "captions/chair_i": "things named in captions that are not visible (CHAIR_i)",
    "captions/chair_s": "captions that name such a thing (CHAIR_s)",
    "match": "matching accuracy; 2/3 of the pairs are hard negatives (always no: .67)",
    "noisy": "captions that are noise",
    "precision": "removed captions that are noise (precision)",
    "recall": "noise that was removed (recall)",
    "kept": "pictures kept",
    "share_web": "web captions that fit, as estimated",
    "share_synthetic": "synthetic captions that fit, as estimated",
    "synthetic_false": "synthetic captions that claim something false",
    "synthetic_kept": "synthetic captions kept",
}
AXES = {
    "axes/hallucination/pope_random": "hallucination: POPE random, F1",
    "axes/hallucination/pope_popular": "POPE popular, F1",
    "axes/hallucination/pope_adversarial": "POPE adversarial, F1",
    "axes/hallucination/chair_i": "named things that are not visible (CHAIR_i)",
    "axes/hallucination/chair_s": "descriptions that name such a thing (CHAIR_s)",
    "axes/hallucination/false_claims": "false claims per answer",
    "axes/hallucination/false_claims_detail": "false claims per description",
    "axes/helpfulness/coverage": "helpfulness: visible things named",
    "axes/helpfulness/answers": "right answers about visible things, mean over kinds",
    "axes/helpfulness/true_claims_detail": "true claims per description",
    "axes/safety/refused_due": "safety: refuses questions that must be refused",
    "axes/safety/refused_harmless": "refuses harmless questions that look similar",
    "axes/preference/win_rate":
        "preference: wins against SFT by a simulated judge, ties half",
    "axes/preference/ties": "ties with SFT",
    "axes/preference/style": "obeys the style asked for",
    "axes/preference/words_detail": "words per description",
    "axes/honesty/unsure_hidden": "honesty: \"not sure\" about barely visible things",
    "axes/honesty/unsure_visible": "\"not sure\" about visible things",
}
SIGHT = {
    "sight/clear_right": "clearly visible things: right",
    "sight/clear_wrong": "clearly visible things: wrong",
    "sight/clear_unsure": "clearly visible things: not sure",
    "sight/hardly_right": "hardly visible things: right",
    "sight/hardly_wrong": "hardly visible things: wrong",
    "sight/hardly_unsure": "hardly visible things: not sure",
    "sight/absent_right": "absent things: said to be absent",
    "sight/absent_wrong": "absent things: wrong",
    "sight/absent_unsure": "absent things: not sure",
    "sight/answered": "right, of all that it does not call unsure",
}
OPTIMIZED = {
    "true/1": "true score of one answer (1 .. 5)", "true/4": "of the best of 4",
    "true/64": "of the best of 64",
    "score/64": "its score by the reward model", "gain": "gain in true score",
    "possible": "gain if the truth chose", "a": "a", "b": "b",
    "r2": "share of the variance that the form explains",
    "left_out/clear": "prefers to leave out what is plain to see",
    "left_out/hardly": "prefers to leave out what is hardly visible",
    "left_out/absent": "prefers to leave out what is not there",
}
LABELS = MAIN | CAPTIONS | AXES | SIGHT | OPTIMIZED
REWARD = {
    "accuracy/gap_1-": "agrees with people, where true ratings differ by 1 or more",
    "accuracy/gap_0.5-1": "agrees with people, where they differ by .5 to 1",
    "accuracy/gap_0-0.5": "agrees with people, where they differ by less",
    "truth/all": "agrees with the true ratings",
    "calibration/error": "calibration error",
    "length/model": "prefers the longer answer",
    "length/people": "people prefer the longer answer",
    "accuracy/all": "agrees with people, all pairs",
    "accuracy/ceiling": "true ratings agree with people, all pairs (the noise ceiling)",
}
TEN = (  # of the README
    "answers/exist", "answers/color", "answers/count", "answers/position", "answers/what_strange",
    "answers/untold", "followed/all", "refused/due", "chair_detail/chair_i",
    "chair_detail/recall",
)
FRONT = (  # of results/README.md
    "answers/exist", "answers/color", "answers/count", "answers/position",
    "answers/relation", "answers/size", "answers/strange", "answers/usual",
    "answers/why_strange", "answers/belongs", "answers/day_night", "answers/setting",
    "answers/assumed", "answers/greeting", "answers/thanks", "answers/offer",
    "refused/due", "refused/harmless", "followed/all", "chair/chair_i", "chair/recall",
    "chair_detail/chair_i", "answers/untold",
)
CHAIR = ("chair/chair_i", "chair/recall", "chair_detail/chair_i", "chair_detail/recall")
CLIP = ("retrieval/image_to_text_r1", "zero_shot/held_out")
SKILLS = ("answers/exist", "answers/color", "answers/size", "answers/count", "answers/position",
          "answers/relation", "followed/all", "refused/due", "chair_detail/chair_i",
          "chair_detail/recall", "pope_random/yes", "pope_adversarial/f1")
FITS = ("true/1", "true/4", "true/64", "score/64", "gain", "possible", "a", "b", "r2")
MORE_SKILLS = ("answers/kind", "answers/unknowable", "followed/form", "style/word",
               "style/sentence", "style/list", "chair/chair_s", "chair/recall_hidden",
               "pope_adversarial/f1")

# --- labels: a result file's name without its seed -> a column ---

BOOK = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO"}
CHOICES = {"placed": "as by default", "mlp": "without places", "linear": "one map",
           "no_connector": "without 3a", "few": "150 steps",
           "few_no_connector": "150 steps, without 3a",
           "young": "LM of 200 steps", "young_no_connector": "LM of 200 steps, without 3a",
           "layer1": "last layer", "layer3": "last but two", "eyes": "ViT trained",
           "random": "and without stage 1"}
WITHIN = {"default": "as by default", "eyes": "ViT trained", "answer_first": "conclusion first",
          "yes": "nine of ten yes", "no_more": "and 150 balanced steps"}
TOLD = {"0": "none", "25": "25 %", "75": "75 %", "eyes": "none, ViT trained in SFT"}
OBJECTIVES = {"blip": "blip", "lm": "lm", "prefix_lm": "prefix_lm"}
WEB = {"filtered": "filtered", "captioned": "one written beside each", "capfilt": "both",
       "beam": "both, by beam search"}
SIZES = {"1000": "1,000", "3000": "3,000", "10000": "10,000", "30000": "30,000"}
LEFT_OUT = {"30000": "all three", "no_conversation": "no conversations",
            "no_detail": "no descriptions", "no_reasoning": "no reasoning"}
PHRASINGS = {"": "trained phrasings", "held_out_": "unseen phrasings"}  # a name begins so
NOT_PPO = {"kl0": "no KL penalty", "kl1": ".1 in place of .3",
           "kl0_500": "no penalty, 500 rankings", "long": "three times the rollouts",
           "facts": "facts",
           "captioner": "captioner", "caption": "PPO of a captioner"}
REWARD_MODELS = {"reward_500": "500 rankings", "reward_2000": "2,000 rankings",
                 "reward": "all 4,300 rankings", "reward_last": "reads the last token",
                 "reward_facts": "reads true captions (--facts)"}
RL = {"rl_kl0_500": "500 rankings", "rl_kl0": "all 4,300"}
CHECKED = {"sft": "SFT", "more": "more SFT", "told": "SFT on GRPO's questions",
           "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "rloo": "RLOO",
           "k8": "8 answers a prompt", "k16": "16", "ppo": "PPO",
           "rloo_reward": "RLOO, reward model", "rloo_reward3": "and PPO's penalty",
           "rloo_in_reward": "and in the reward",
           "best16": "SFT, best of 16 by the reward model"}
HONEST = {"before": "SFT", "sft": "R-Tuning", "dr_grpo75": "and Dr. GRPO, .75",
          "dr_grpo8": "and Dr. GRPO, .8", "dr_grpo85": "and Dr. GRPO, .85",
          "grpo8": "and GRPO, .8", "ppo": "and PPO", "dpo": "and DPO"}
THREADS = {"sft": "SFT", "1": "PPO, 1 thread", "2": "PPO, 2 threads"}
FAMILY = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO, dense", "gray": "gray pictures",
          "plain": "DPO, plain", "cdpo": "cDPO", "ipo": "IPO", "kto": "KTO",
          "lora": "LoRA", "round2": "second round", "round3": "third round",
          "silkie": "pool and judge (Silkie)"}


ROW_WORDS = (
    "Shares. The questions are worded as training never words them. Invented: of the things named "
    "in detailed descriptions, those that are not visible."
)

# --- for README.zh.md ---

CHINESE_WORDS = {
    "chance": "随机", "SFT, blind": "SFT，看灰图",
    LABELS["answers/exist"]: "有没有……？", LABELS["answers/color"]: "什么颜色",
    LABELS["answers/count"]: "有几个", LABELS["answers/position"]: "在哪里",
    LABELS["answers/what_strange"]: "哪里不寻常",
    LABELS["answers/untold"]: "只在第 0 阶段的文本里出现过的常识",
    LABELS["followed/all"]: "照要求回答而且答对（各类问题的平均）",
    LABELS["refused/due"]: "该拒绝时拒绝",
    LABELS["chair_detail/chair_i"]: "详细描述中提到却看不见的物体（CHAIR_i）",
    LABELS["chair_detail/recall"]: "详细描述中提到的可见物体",
    "pictures that find their caption among 1,000": "图片在 1,000 条描述中找到自己那一条",
    "questions answered rightly": "答对的问题",
    "the same about gray pictures": "同样的问题，只给灰图",
    **{f"invented: {name}": f"凭空捏造：{name}" for name in ("SFT", "PPO", "DPO", "GRPO")},
}
CHINESE_SENTENCES = {
    "Mean ± standard deviation (seeds: ": "均值 ± 标准差（种子数：",
    "), on held-out pictures, in phrasings that training never uses; ":
        "），测试图片与训练图片无交集，问法也从未在训练中出现；",
    " cores of ": " 核 ", "; torch ": "；torch ", " (1 seed)": "（1 个种子）",
    ROW_WORDS: "都是比例。问法从未在训练中出现。凭空捏造：详细描述中提到的东西里，看不见的所占的比例。",
}


# --- reading ---


def read_result(path: Path) -> dict:
    """Read a result file, without the figures of CHAIR that are stale.

    Before details were asked for, too, things that captions deny counted as shown.
    """
    report = json.loads(path.read_text())
    for part in ("figures", "blind"):
        figures = report.get(part, {})
        if not any(name.startswith("chair_detail/") for name in figures):
            report[part] = {k: v for k, v in figures.items() if not k.startswith("chair/")}
    return report


def load(folder: str) -> dict[str, list[dict]]:
    """Result files of a folder by their name without the seed."""
    reports = defaultdict(list)
    for path in sorted((HERE / folder).glob("*-seed*.json")):
        name = path.name.rsplit("-seed", 1)[0]
        reports[name].append(read_result(path))
    return reports


def named(folder: str, labels: dict[str, str]) -> dict[str, list[dict]]:
    """Result files by label; labels: file name without the seed -> label, in order."""
    reports = load(folder)
    return {label: reports.get(name, []) for name, label in labels.items()}


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv as numbers, without their empty cells.

    Rows differ in their columns: between two evaluations a row holds training figures
    alone, and the first row was written before any training step.
    """
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def logs_of(folder: str, stage: str = "*") -> list[list[dict[str, float]]]:
    """The rows of each log of a folder, of one stage or of all."""
    return [read_log(path) for path in sorted((HERE / folder).glob(f"{stage}-seed*.csv"))]


# --- cells and lines ---


def cell(values: list[float]) -> str:
    """The mean, and the standard deviation if there are several."""
    mean = f"{statistics.fmean(values):.3f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.3f}"


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def head(cells: list[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(cells), "|---" * len(cells) + "|"]


def cores(cpu: str) -> str:
    """The processor of an environment in words: "AMD EPYC x 2" -> "2 cores of AMD EPYC"."""
    name, _, n = cpu.rpartition(" x ")
    return f"{n} cores of {name}"


def n_seeds(n: int) -> str:
    """1 seed, 2 seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"


def figure_cell(reports: list[dict], key: str, side: str = "figures") -> str:
    """A figure of the seeds that measured it, with their number if that was not all of them."""
    values = [r[side][key] for r in reports if key in r[side]]
    if not values:
        return "-"
    return cell(values) + ("" if len(values) == len(reports) else f" ({n_seeds(len(values))})")


def chance_cell(reports: list[dict], key: str) -> str:
    """The chance level; descriptions and refusals have none."""
    chance = reports[0]["chance"].get(key)
    return "" if chance is None else f"{chance:.2f}"


def counts_of(columns: dict[str, list[dict]]) -> str:
    """The number of seeds of each column, or one number if it is the same for all."""
    counts = [str(len(reports)) for reports in columns.values()]
    return counts[0] if len(set(counts)) == 1 else ", ".join(counts)


def side_by_side(
    title: str, columns: dict[str, list[dict]], keys: Iterable[str], minutes: str = ""
) -> list[str]:
    """One column for each way of training, one line for each figure.

    Args:
        columns: label -> its results; without results in one of them there is no table.
        minutes: label of a first line with the minutes of training. They are
            --train_seconds if evaluate.py was given them, else the last stage's own.
    """
    if not columns or not all(columns.values()):
        return []
    lines = [f"{title} (seeds: {counts_of(columns)}):", "", *head(["", *columns])]
    if minutes:
        means, peaks = [], []
        for reports in columns.values():
            took = [r["train_seconds"] / 60 or r["training"]["min"] for r in reports]
            means.append(f"{statistics.fmean(took):.1f}")
            peak = max(max(r["training"]["gb"], r["peak_gb"]) for r in reports)
            peaks.append(f"{peak:.1f}")
        lines += [line([minutes, *means]), line(["peak memory, GB", *peaks])]
    for key in keys:
        cells = [figure_cell(reports, key) for reports in columns.values()]
        lines.append(line([LABELS[key], *cells]))
    return lines


# --- one data set, stage by stage ---


def main_table(folder: str) -> list[str]:
    """Every figure of CLIP and SFT on a data set beside the blind baseline and chance."""
    every = load(folder)
    by_stage = {stage: every[stage] for stage in ("clip", "sft") if stage in every}
    if not by_stage:
        return []
    reports = [r for of_stage in by_stage.values() for r in of_stage]
    first = reports[0]
    env = first["environment"]
    # a stage may have been measured with fewer seeds than another
    n = max(len(of_stage) for of_stage in by_stage.values())
    commits = sorted({r["environment"]["commit"] for r in reports})
    # --train_seconds holds all stages before a measurement, but not the measurement itself
    minutes = max(r["train_seconds"] / 60 for r in reports)
    for of_stage in by_stage.values():
        minutes += max((r["minutes"] for r in of_stage if r["train_seconds"]), default=0.0)
    # the reports know evaluate.py and the stage before it, the logs know all stages
    peaks = [max(r["peak_gb"], r["training"]["gb"]) for r in reports]
    peaks += [log[-1]["gb"] for log in logs_of(folder)]
    lines = [
        f"Data: {first['data']}, {first['config']['n_images']} held-out pictures "
        f"for retrieval; {n_seeds(n)}; {env['cpu']}; torch {env['torch']}; "
        f"commit {', '.join(commits)}. "
        f"Data, training and measuring: {minutes:.1f} minutes at most; "
        f"largest process: {max(peaks):.1f} GB.",
        "",
        *head(["held-out pictures", "value", "blind (gray picture)", "chance"]),
    ]
    for key, label in MAIN.items():
        for of_stage in by_stage.values():
            value = figure_cell(of_stage, key)
            if value == "-":
                continue
            blind = figure_cell(of_stage, key, "blind")
            lines.append(line([label, value, blind, chance_cell(of_stage, key)]))
    return lines


def last_stretch(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows behind the last evaluation but one."""
    evaluated = [i for i, row in enumerate(log) if "val_loss" in row]
    return log[evaluated[-2] + 1:]


def stage_table(folder: str) -> list[str]:
    """Length, speed and held-out loss of each stage, by its log."""
    lines = head(["stage", "steps", "ms per step", "share for data", "minutes",
                  "held-out loss before", "after"])
    n_stages = 0
    for stage in ("lm", "clip", "caption", "align", "sft"):
        logs = logs_of(folder, stage)
        if not logs:
            continue
        n_stages += 1
        # the last row is always an evaluation, of the trained model
        last = [log[-1] for log in logs]
        timed = [row for log in logs for row in last_stretch(log)]
        ms = statistics.fmean(row["ms"] for row in timed)
        data_ms = statistics.fmean(row["data_ms"] for row in timed)
        minutes = statistics.fmean(row["min"] for row in last)
        before = cell([log[0]["val_loss"] for log in logs])
        after = cell([row["val_loss"] for row in last])
        lines.append(line([
            stage, f"{last[0]['step']:.0f}", f"{ms:.0f}", f"{data_ms / ms:.1%}",
            f"{minutes:.1f}", before, after,
        ]))
    return lines if n_stages else []


# --- captioning ---


def caption_tables() -> list[list[str]]:
    """The three objectives, what SFT makes of each, and CapFilt."""
    objectives = measured(named("captions", OBJECTIVES))
    for reports in objectives.values():
        for r in reports:  # the matching accuracy stands in the log of the run
            if "val_match" in r["training"]:
                r["figures"]["match"] = r["training"]["val_match"]
    tuned = {f"sft_{name}": f"behind {label}" for name, label in OBJECTIVES.items()}
    cleaned = measured(named("captions", {f"filter_{name}": WEB[name] for name in WEB}))
    for reports in cleaned.values():
        for r in reports:  # a count becomes a share
            r["figures"]["kept"] = r["figures"]["kept"] / r["figures"]["pictures"]
    return [
        side_by_side(
            "Each objective trains for about as long, from the same CLIP and language model",
            objectives,
            ("captions/cider", "captions/bleu4", "captions/rouge_l", "captions/clip_score",
             "captions/clip_score_people", "captions/recall", "captions/chair_i",
             "captions/chair_s", "match"),
            "minutes",
        ),
        side_by_side("600 steps of SFT behind each", measured(named("captions", tuned)), SKILLS),
        side_by_side(
            "What captioner and filter do to 10,000 web captions", cleaned,
            ("noisy", "precision", "recall", "kept", "share_web", "share_synthetic",
             "synthetic_false", "synthetic_kept"),
        ),
        side_by_side(
            "A captioner (lm) that learns from them, at equal steps",
            measured(named("captions", {"web": "as found"} | WEB)),
            ("captions/cider", "captions/bleu4", "captions/recall", "captions/chair_i"),
        ),
    ]


def choice_tables() -> list[list[str]]:
    """The choices of LLaVA and its critics, and sizes that captions do not tell."""
    columns = measured(named("choices", CHOICES))
    told = measured(named("sizes", TOLD))
    return [
        side_by_side("Without captioning, 600 steps of SFT, one choice changed", columns, SKILLS),
        side_by_side(
            "600 steps of SFT behind the captioner", measured(named("sft", WITHIN)), SKILLS
        ),
        side_by_side("Captions of stages 1 and 2 that tell sizes", told, SKILLS),
    ]


# --- the data engine ---


def engine_line() -> list[str]:
    """How fast the data engine is, and whether what it writes is true."""
    path = HERE / "instruct" / "engine.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text())
    f = report["figures"]
    return [
        f"`data/instruct.py`, offline, one core of {report['environment']['cpu']}: "
        f"{f['dialogues']:,} dialogues of {f['rounds']:,} questions in "
        f"{f['seconds']:.0f} s, {f['rejected']} rejected. "
        f"{f['valid'] / f['dialogues']:.0%} pass the checks. "
        f"They hold {f['claims']:,} claims, of which "
        f"{f['true'] / f['claims']:.0%} are true of the scene. "
        f"There are {f['kinds']} kinds of question, each in at least "
        f"{f['phrasings_of_a_kind_at_least']} phrasings."
    ]


def amounts_table() -> list[str]:
    """How much is learned from how many dialogues, in trained and in unseen phrasings."""
    lines = head(["dialogues", *SIZES.values()])
    for key in ("followed/form", "followed/all"):
        for prefix, words in PHRASINGS.items():
            by_amount = named("instruct", {prefix + name: name for name in SIZES})
            if not all(by_amount.values()):  # not all runs have been made
                return []
            cells = [figure_cell(reports, key) for reports in by_amount.values()]
            lines.append(line([f"{LABELS[key]}, {words}", *cells]))
    return lines


def dialogue_tables() -> list[list[str]]:
    """The data engine: its speed, what is learned from how much, and from which types."""
    keys = [
        "followed/form", "followed/all", *(f"answers/{kind}" for kind in KINDS),
        "style/word", "style/sentence", "style/list", "refused/due", "refused/harmless",
    ]
    figure = picture("number of dialogues, and types left out", "instruct/efficiency.png")
    tables = [engine_line(), amounts_table(), figure]
    compared = {"Number of dialogues": SIZES, "A type left out": LEFT_OUT}
    for title, labels in compared.items():
        for prefix, words in PHRASINGS.items():
            files = {prefix + name: label for name, label in labels.items()}
            columns = measured(named("instruct", files))
            tables.append(side_by_side(f"{title}, {words}", columns, keys))
    return tables


# --- preferences ---


def best_rows(name: str, folder: str = "preferences") -> list[dict[str, float]]:
    """Of each seed's log the row of best.pt: the one with the lowest held-out loss."""
    rows = []
    for log in logs_of(folder, name):
        evaluated = [row for row in log if "val_loss" in row]
        rows.append(min(evaluated, key=lambda row: row["val_loss"]))
    return rows


def reward_table() -> list[str]:
    """Reward models beside the noise of their labels."""
    columns = {}
    for name, label in REWARD_MODELS.items():
        rows = best_rows(name)
        if rows:
            columns[f"{label}, {n_seeds(len(rows))}"] = rows
    if not columns:
        return []
    lines = head(["held-out answers, pair by pair; people are simulated", *columns])
    for key, label in REWARD.items():
        cells = [cell([row[key] for row in rows]) for rows in columns.values()]
        lines.append(line([label, *cells]))
    shares = []
    for rows in columns.values():
        shares.append(cell([row["accuracy/all"] / row["accuracy/ceiling"] for row in rows]))
    return [*lines, line(["agrees with people, as a share of the noise ceiling", *shares])]


def picture(text: str, path: str) -> list[str]:
    """A picture of this folder, if it is there."""
    return [f"![{text}]({path})"] if (HERE / path).is_file() else []


def preference_tables() -> list[list[str]]:
    """Reward models, PPO without its KL, PPO of a model that never learned to chat, DPO."""
    best = {f"best_of_n_{name}": label for name, label in REWARD_MODELS.items()}
    tables = [
        reward_table(),
        side_by_side(
            "A sentence of a detailed description left out, by the thing that it names",
            measured(named("preferences", {
                f"leave_out_{name}": label for name, label in REWARD_MODELS.items()})),
            ("left_out/clear", "left_out/hardly", "left_out/absent"),
        ),
        side_by_side("PPO otherwise", measured(named("preferences", NOT_PPO)), SKILLS),
        side_by_side("The best of 64 answers by the reward model; gain = d (a - b d)",
                     measured(named("preferences", best)), FITS),
        side_by_side("PPO without the KL penalty; gain = d (a - b ln d)",
                     measured(named("preferences", RL)), ("a", "b", "r2", "gain")),
        picture("scores over KL", "preferences/overoptimization.png"),
    ]
    path = HERE / "preferences" / "rollouts.json"
    if path.is_file():
        f = json.loads(path.read_text())["figures"]
        tables.append([
            f"128 answers of 64 tokens take {f['cache_seconds']:.1f} s with the KV cache "
            f"and {f['no_cache_seconds']:.1f} s without it, "
            f"{f['times_faster']:.1f} times as long. "
            f"A step of the reward model is {f['times_faster_packed']:.1f} times faster "
            "if the four answers to a prompt share one row than if each has its own."
        ])
    return [
        *tables, side_by_side("DPO and its kin", measured(named("dpo", FAMILY)), AXES),
        picture("what DPO learns from a judge that errs", "dpo/feedback.png"),
    ]


def measured(columns: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The columns that have results."""
    return {label: reports for label, reports in columns.items() if reports}


def checked_tables() -> list[list[str]]:
    """GRPO and its kin in unseen phrasings and in taught ones; all begin with one chatbot."""
    unseen = measured(named("grpo", CHECKED))
    taught = measured(named("grpo", {f"quiz_{name}": label for name, label in CHECKED.items()}))
    keys = (*FRONT, *MORE_SKILLS)
    return [
        side_by_side("Rewards that a program checks; unseen phrasings", unseen, keys),
        side_by_side("The same in taught phrasings", taught,
                     ("followed/all", "followed/form", "refused/due", "refused/harmless")),
    ]


def honesty_tables() -> list[list[str]]:
    """What is said of things seen well, hardly, and not at all; what else changed."""
    sights = measured(named("honesty", HONEST))
    skills = measured(
        named("honesty", {f"skills_{name}": label for name, label in HONEST.items()}))
    return [
        side_by_side("Questions about clearly visible, hardly visible and absent things", sights,
                     SIGHT),
        side_by_side("All other questions", skills, FRONT),
        picture("right answers over answers \"not sure\"", "honesty/figure.png"),
    ]


def ppo_table() -> list[str]:
    """PPO on one thread and on two; all runs have the same chatbot and reward model."""
    columns = measured(named("ppo", THREADS))
    keys = (*CHAIR, "followed/all", "refused/due", "refused/harmless")
    title = "PPO with other seeds and numbers of threads, from one chatbot and one reward model"
    return side_by_side(title, columns, keys)


# --- photographs ---


def cifar_table() -> list[str]:
    """Photographs, classified by text prompts."""
    reports = load("cifar10").get("clip", [])
    if not reports:
        return []
    minutes = cell([r["training"]["min"] for r in reports])
    accuracy = figure_cell(reports, "zero_shot/all")
    return [
        f"{reports[0]['training']['step']:.0f} steps, {minutes} minutes; accuracy by text "
        f"prompts on held-out photographs: {accuracy}, "
        f"chance {reports[0]['chance']['zero_shot/all']:.2f}.",
        "", "![confusion matrix](cifar10/confusion.png)",
    ]


# --- choices ---

OF_CLIP = [key for key in LABELS if key.startswith(("retrieval", "zero_shot"))]


def siglip_tables() -> list[list[str]]:
    """Retrieval with SigLIP's loss and with InfoNCE at three batch sizes."""
    columns = {}
    for batch in (32, 128, 512):
        for loss, label in (("infonce", "InfoNCE"), ("siglip", "SigLIP")):
            [reports] = named("siglip", {f"{loss}-{batch}": ""}).values()
            columns[f"{label}, {batch} pairs"] = reports
    table = side_by_side("The same pairs in batches of three sizes", columns, OF_CLIP)
    return [table, picture("recall@1 over the batch size", "siglip/figure.png")]


def wide_table() -> list[str]:
    """Wide pictures, made square in three ways."""
    columns = named("wide", {"crop": "cropped", "pad": "padded", "stretch": "stretched"})
    return side_by_side("CLIP of pictures half as wide again as high", columns, OF_CLIP)


def parts_table() -> list[str]:
    """Held-out loss of stage 0 with the parts of Llama's blocks, and what a step takes."""
    names = {
        "layer-gelu": "LayerNorm, GELU", "rms-gelu": "RMSNorm, GELU",
        "layer-swiglu": "LayerNorm, SwiGLU", "rms-swiglu": "RMSNorm, SwiGLU",
    }
    logs = {label: logs_of("parts", name) for name, label in names.items()}
    if not all(logs.values()):
        return []
    lines = head(["stage 0", "loss after 500 steps", "ms a step, least of fifty means"])
    for label, of_seeds in logs.items():
        ends = [log[-1]["val_loss"] for log in of_seeds]
        ms = [min(row["ms"] for row in log if "ms" in row) for log in of_seeds]
        lines.append(line([label, cell(ends), f"{statistics.fmean(ms):.0f}"]))
    return lines


def memory_tables() -> list[list[str]]:
    """Memory and time of a step at true sizes, by options."""
    tables = []
    for path in sorted((HERE / "backbones").glob("*.json")):
        report = json.loads(path.read_text())
        env = report["environment"]
        where = env["gpu"] if env["gpu"] != "none" else cores(env["cpu"])
        rows = report["config"]["batch_size"]
        lines = [
            f"{path.stem}, {report['n_weights'] / 1e6:,.0f} million weights in the language "
            f"model; {rows} rows a step of {report['tokens']:.0f} tokens on average, "
            f"{report['image_tokens']} of them of the picture; {where}; torch {env['torch']}.",
            "", *head(["script", "options", "peak memory, GB", "seconds a step"]),
        ]
        for entry in report["lines"]:
            script, options = f"train_{entry['stage']}.py", f"`{entry['options']}`"
            if "ms" not in entry:
                lines.append(line([script, options, "out of memory", ""]))
            else:
                seconds = f"{entry['ms'] / 1000:.1f}"
                lines.append(line([script, options, f"{entry['gb']:.1f}", seconds]))
        tables.append(lines)
    return tables


SPEED = {  # cases of bench.py
    "clip": "CLIP, a step", "lm": "GPT, a step", "sft": "LLaVA's SFT, a step",
    "dpo": "DPO, a step", "ppo": "PPO, an iteration (peer: value head on the policy)",
    "ppo2": "PPO, an iteration (peer: value model of its own)",
    "greedy1": "greedy, one row, a token", "greedy16": "greedy, 16 rows, a token of each",
    "sample": "drawn with pictures, a token of each", "pictures": "reading a photograph",
    "batches": "making a batch of dialogues",
}


def speed_tables() -> list[list[str]]:
    """Ours beside transformers and TRL, from bench.json, a table for each size."""
    path = HERE / "bench.json"
    tables = []
    for size, report in json.loads(path.read_text()).items() if path.is_file() else ():
        env = report["environment"]
        cases = report["cases"]
        where = env["gpu"] if env["gpu"] != "none" else cores(env["cpu"])
        rate = statistics.median(entry["matmul_gflops"] for entry in cases.values())
        lines = [
            f"`python bench.py --size {size}`; {where}, {rate:.0f} GFLOP/s in a large matrix "
            f"product; torch {env['torch']}. In brackets the lowest and the highest of "
            f"{report['config']['rounds']} turns.",
            "",
            *head([size, "ours, ms", "peer / ours", "share of that rate", "GB", "GB, peer"]),
        ]
        for name, label in SPEED.items():
            if name not in cases:
                continue
            entry = cases[name]
            ratio = share = ""
            if "ratio" in entry:
                low, high = entry["ratio_low"], entry["ratio_high"]
                ratio = f"{entry['ratio']:.2f} ({low:.2f} .. {high:.2f})"
            if "share" in entry:
                share = f"{entry['share']:.2f}"
            memory = [f"{entry[k]:.1f}" if k in entry else "" for k in ("gb", "peer_gb")]
            ms = entry["ours_ms"]
            time = f"{ms:,.0f}" if ms > 100 else f"{ms:.3g}"
            lines.append(line([label, time, ratio, share, *memory]))
        tables.append(lines)
    return tables


# --- pages ---


def joined(parts: Iterable[list[str]]) -> str:
    """Tables with an empty line between them; those without results are left out."""
    return "\n\n".join("\n".join(part) for part in parts if part)


def front_table(keys: Iterable[str] = FRONT) -> list[str]:
    """What the chatbot can do beside chance, blind, and after PPO and DPO.

    A stage without results is left out.
    """
    columns = {label: found for label, found in named("book", BOOK).items() if found}
    if "SFT" not in columns:
        return []
    sft = columns["SFT"]
    env = sft[0]["environment"]
    lines = [
        f"Mean ± standard deviation (seeds: {counts_of(columns)}), on held-out pictures, in "
        f"phrasings that training never uses; {cores(env['cpu'])}; torch {env['torch']}.",
        "",
        *head(["", "chance", "SFT, blind", *columns]),
    ]
    for key in keys:
        cells = [figure_cell(reports, key) for reports in columns.values()]
        if set(cells) != {"-"}:
            baselines = [chance_cell(sft, key), figure_cell(sft, key, "blind")]
            lines.append(line([LABELS[key], *baselines, *cells]))
    return lines


def aside_table() -> list[str]:
    """Two figures of chatbots made for them: one that never read, one in taught phrasings."""
    lines = []
    for name, key, words in (
        ("unread", "answers/untold", "without stage 0 and its documents"),
        ("quiz", "followed/all", "in taught phrasings"),
    ):
        [reports] = named("book", {name: ""}).values()
        if reports:
            lines.append(line([f"{LABELS[key]}, {words}", figure_cell(reports, key)]))
    return [*head(["", "SFT"]), *lines] if lines else []


def row() -> list[str]:
    """One row of numbers, for the first screen of the README."""
    [clip], [sft] = named("book", {"clip": ""}).values(), named("book", {"sft": ""}).values()
    if not clip or not sft:
        return []
    cells = {
        "pictures that find their caption among 1,000":
            figure_cell(clip, "retrieval/image_to_text_r1"),
        "questions answered rightly": figure_cell(sft, "followed/all"),
        "the same about gray pictures": figure_cell(sft, "followed/all", "blind"),
    }
    for folder, name, label in (
        ("book", "sft", "SFT"), ("book", "ppo", "PPO"), ("book", "dpo", "DPO"),
        ("grpo", "grpo", "GRPO"),
    ):
        [reports] = named(folder, {name: ""}).values()
        if reports:
            cells[f"invented: {label}"] = figure_cell(reports, "chair_detail/chair_i")
    return [*head(list(cells)), line(cells.values()), "", ROW_WORDS]


def clip_table() -> list[str]:
    """Two figures of CLIP beside chance and gray pictures."""
    [reports] = named("book", {"clip": ""}).values()
    if not reports:
        return []
    n_images = reports[0]["config"]["n_images"]
    lines = head([f"CLIP, {n_images:,} held-out pictures", "chance", "blind", "CLIP"])
    for key in CLIP:
        cells = [figure_cell(reports, key, side) for side in ("blind", "figures")]
        lines.append(line([LABELS[key], chance_cell(reports, key), *cells]))
    return lines


def block() -> str:
    """The tables of the README: ten figures, how far they move, and speed."""
    return joined([front_table(TEN), ppo_table(), *speed_tables()])


def serve_table() -> list[str]:
    """What serve.py stands, see load.py."""
    path = HERE / "serve.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text())
    f, config = report["figures"], report["config"]
    title = (f"{f['answers']} questions over {config['connections']} connections; "
             f"{cores(report['environment']['cpu'])}:")
    cells = [f"{f['answers_per_second']:.1f}", f"{f['p50_seconds']:.2f}", f"{f['p95_seconds']:.2f}",
             f"{f['peak_mb_before']:.0f}", f"{f['peak_mb']:.0f}"]
    labels = ["answers a second", "seconds for an answer, half are faster", "95 % are faster",
              "peak memory after 20 questions, MB", "after all"]
    return [title, "", *head(labels), line(cells)]


def by_hand_block() -> str:
    """What the rankings of one person change, for docs/rlhf_by_hand.md."""
    judges = {}
    for folder, name, label in (
        ("by_hand", "reward_50", "50 rankings"), ("by_hand", "reward_200", "200 rankings"),
        ("preferences", "reward", "4,300 of many people"),
    ):
        rows = best_rows(name, folder)
        if rows:
            judges[label] = cell([r["truth/all"] for r in rows])
    reward = [*head(["reward model", *judges]), line([REWARD["truth/all"], *judges.values()])]
    chatbots = named("dpo", {"sft": "SFT"}) | named(
        "by_hand", {"dpo_50": "DPO, 50 rankings", "dpo_200": "DPO, 200 rankings"}
    ) | named("dpo", {"dpo": "DPO, 4,300"})
    keys = ("followed/all", "refused/due", "chair_detail/chair_i", "chair_detail/recall")
    shown = side_by_side("The chatbot", measured(chatbots), keys)
    return joined([person_line(), reward if judges else [], shown])


def person_line() -> list[str]:
    """How far the scripted person agrees with the scenes."""
    path = HERE / "by_hand" / "person.json"
    if not path.is_file():
        return []
    [(share, pairs)] = json.loads(path.read_text())["agreement"].values()
    return [f"The scripted person agrees with the scenes on {share:.0%} of {pairs} pairs."]


def in_chinese(text: str) -> str:
    """Tables with their words in Chinese; numbers and names stay as they are."""
    lines = []
    for written in text.splitlines():
        if written.startswith("| "):
            cells = [CHINESE_WORDS.get(cell, cell) for cell in written[2:-2].split(" | ")]
            written = line(cells)
        for words, chinese in CHINESE_SENTENCES.items():
            written = written.replace(words, chinese)
        lines.append(written)
    return "\n".join(lines)


# folders measured when all prompts of stage 4 used taught phrasings
OLDER = ("by_hand", "dpo", "preferences")


def page() -> str:
    """results/README.md: every table, under the headline of its section."""
    sections = {
        "The picture book": [
            front_table(), aside_table(), clip_table(), main_table("book"), stage_table("book"),
        ],
        "Captioning": caption_tables(),
        "Choices": choice_tables(),
        "The data engine": dialogue_tables(),
        "Preferences": preference_tables(),
        "PPO, seed by seed": [ppo_table()],
        "Checked rewards": checked_tables(),
        "Saying \"not sure\"": honesty_tables(),
        "SigLIP's loss": siglip_tables(),
        "Wide pictures": [wide_table()],
        "Parts of a block": [parts_table()],
        "Speed": speed_tables(),
        "Memory": memory_tables(),
        "The page": [serve_table()],
        "NLVR": [main_table("nlvr")],
        "CIFAR-10": [cifar_table()],
    }
    parts = [[
        "# Results", "",
        "Written by `python results/tables.py --write` from the files in this folder.",
        f"When these were measured, all prompts of stage 4 used taught phrasings: "
        f"{', '.join(OLDER)}.",
    ]]
    for title, tables in sections.items():
        if any(tables):
            parts += [[f"## {title}"], *tables]
    return joined(parts) + "\n"


def put_between(text: str, begin: str, end: str, new: str) -> str:
    """The text with something new between two markers."""
    before, rest = text.split(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        text = put_between(README.read_text(), BEGIN, END, block())
        README.write_text(put_between(text, ROW_BEGIN, ROW_END, joined([row()])))
        text = BY_HAND.read_text()
        BY_HAND.write_text(put_between(text, BY_HAND_BEGIN, BY_HAND_END, by_hand_block()))
        shown = in_chinese(joined([front_table(TEN)]))
        text = put_between(CHINESE.read_text(), BEGIN, END, shown)
        CHINESE.write_text(put_between(text, ROW_BEGIN, ROW_END, in_chinese(joined([row()]))))
        (HERE / "README.md").write_text(page())
    elif sys.argv[1:]:
        unknown = " ".join(sys.argv[1:])
        sys.exit(f"tables.py: error: unknown arguments {unknown}; only --write")
    else:
        print(page())
