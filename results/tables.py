"""Print the result tables from results/*/*.json and *.csv, or write them where they are read.

    python results/tables.py            print
    python results/tables.py --write    replace both blocks between the README's marker comments,
                                        and write results/README.md

A cell is the mean over the seeds that were run, with the standard deviation behind it.
"""

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: python results/tables.py --write -->", "<!-- end of results -->"
REPORT = HERE.parent / "docs" / "report" / "report.md"  # what ./speedrun.sh has written, seed 0
REPORT_BEGIN, REPORT_END = "<!-- report: docs/report/report.md -->", "<!-- end of report -->"

MAIN = {
    "retrieval/image_to_text_r1": "picture to caption, recall@1",
    "retrieval/text_to_image_r1": "caption (partial ones too) to picture, recall@1",
    "zero_shot/seen": "zero-shot, 40 seen color-shape pairs",
    "zero_shot/held_out": "zero-shot, 8 pairs never seen",
    "answers/exist": "answers: is there a ...?",
    "answers/color": "answers: color",
    "answers/shape": "answers: shape",
    "answers/size": "answers: size",
    "answers/statement": "answers: is it true what a person wrote?",
    "answers/count": "answers: how many",
    "answers/position": "answers: where",
    "answers/relation": "answers: left of, above",
    "pope_random/f1": "POPE random, F1",
    "pope_popular/f1": "POPE popular, F1",
    "pope_adversarial/f1": "POPE adversarial, F1",
    "style/word": "obeys: one word",
    "style/sentence": "obeys: one sentence",
    "style/list": "obeys: a list",
    "chair/recall": "visible objects named in descriptions",
    "chair/chair_i": "named objects that cannot be seen (CHAIR_i)",
    "chair/chair_s": "descriptions with such an object (CHAIR_s)",
    "answers/hidden": "hardly visible objects affirmed when asked",
    "chair/recall_hidden": "hardly visible objects named in descriptions",
    "refused/due": "refuses what it should",
    "refused/harmless": "refuses harmless look-alikes",
}
PAGE_ONLY = ("retrieval/text_to_image_r1", "pope_random/f1", "pope_popular/f1", "style/word",
             "style/sentence", "style/list", "answers/shape", "chair/chair_s",
             "answers/hidden")  # not in README
WAYS = {
    "full": "stages 1, 3a, 3b", "no_3a": "without 3a", "no_1": "without 1", "neither": "3b alone",
}


CAPTIONS = {
    "captions/cider": "CIDEr-D (0 .. 10)",
    "captions/bleu4": "BLEU-4",
    "captions/rouge_l": "ROUGE-L",
    "captions/clip_score": "CLIPScore (0 .. 2.5), by the CLIP that all begin with",
    "captions/clip_score_people": "CLIPScore of reference captions",
    "captions/recall": "visible objects named in captions",
    "captions/chair_i": "objects named in captions that cannot be seen (CHAIR_i)",
    "captions/chair_s": "captions with such an object (CHAIR_s)",
    "ranked/exist": "likeliest of all answers: is there a ...?",
    "ranked/color": "likeliest of all answers: color",
    "match": "pairs judged rightly, 2/3 of them hard negatives (always no: .67)",
    "noisy": "captions that are noise",
    "precision": "of those removed, noise (precision)",
    "recall": "of the noise, removed (recall)",
    "kept": "pictures kept",
    "share_web": "web captions estimated to fit",
    "share_synthetic": "synthetic captions estimated to fit",
}
DIALOGUES = {
    "followed/form": "does what was asked, mean over kinds",
    "followed/all": "and is right",
    "answers/kind": "answers: what is the red object?",
    "answers/negation": "answers: is there no ...?",
    "answers/compare_number": "answers: more of these than of those?",
    "answers/compare_size": "answers: larger than?",
    "answers/same": "answers: the same color, size, shape?",
    "answers/unusual": "answers: which one is odd?",
    "answers/next_to": "answers: color of what is left of ...?",
    "answers/without": "answers: how many without ...?",
    "answers/one_more": "answers: how many with one more?",
    "answers/unknowable": "answers: not sure, where nobody could be",
}
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
PREFERENCES = {"sft": "SFT", "ppo": "PPO"}
NOT_PPO = {"ppo": "PPO", "hot": "hotter PPO", "no_kl": "hotter, no KL penalty",
           "no_kl_facts": "hotter, no KL penalty, facts", "ppo_caption": "PPO of a captioner"}
SKILLS = ("chair/chair_i", "chair/recall", "chair/recall_hidden", "answers/exist", "answers/color",
          "answers/count", "answers/position", "followed/form", "followed/all", "refused/due",
          "refused/harmless")
MORE_SKILLS = ("answers/shape", "answers/size", "answers/relation", "answers/unknowable",
               "answers/hidden", "style/word", "style/sentence", "style/list", "chair/chair_s",
               "pope_adversarial/f1")
AXES = {
    "axes/hallucination/pope_random": "hallucination: POPE random, F1",
    "axes/hallucination/pope_popular": "POPE popular, F1",
    "axes/hallucination/pope_adversarial": "POPE adversarial, F1",
    "axes/hallucination/chair_i": "named objects that cannot be seen (CHAIR_i)",
    "axes/hallucination/chair_s": "descriptions with such an object (CHAIR_s)",
    "axes/hallucination/false_claims": "false claims an answer",
    "axes/hallucination/false_claims_detail": "false claims a description",
    "axes/helpfulness/coverage": "helpfulness: visible objects named",
    "axes/helpfulness/answers": "right answers, mean over seven kinds",
    "axes/helpfulness/true_claims_detail": "true claims a description",
    "axes/safety/refused_due": "safety: refuses what it should",
    "axes/safety/refused_harmless": "refuses harmless look-alikes",
    "axes/preference/win_rate": "preference: wins against SFT, by a simulated judge, ties half",
    "axes/preference/ties": "ties",
    "axes/preference/style": "obeys the style asked for",
    "axes/preference/words_detail": "words a description",
    "axes/honesty/unsure_hidden": "honesty: not sure of the hardly visible",
    "axes/honesty/unsure_visible": "not sure of the visible",
}
METHODS = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO",
           "ppo_facts": "PPO, facts (LLaVA-RLHF)",
           "silkie": "DPO, pool and judge (Silkie)"}
FAMILY = {"dpo": "DPO, dense", "plain": "DPO, plain", "cdpo": "cDPO", "ipo": "IPO", "lora": "LoRA",
          "dpo2": "second round", "dpo3": "third round"}
AMOUNTS = {str(n): f"{n:,}" for n in (1000, 3000, 10000, 30000)}
LEFT_OUT = {"30000": "all three", "no_conversation": "no conversations",
            "no_detail": "no descriptions", "no_reasoning": "no reasoning"}
OBJECTIVES = {"blip": "blip", "lm": "lm", "prefix_lm": "prefix_lm"}
WEB = {"web": "as found", "capfilt": "after CapFilt"}
SFT = {"sft": "3a, SFT", "sft_caption": "captioner, SFT",
       "sft_caption_short": "captioner, SFT, all at equal time"}


def load(folder: str) -> dict[str, list[dict]]:
    """Result files of a folder by their name without the seed."""
    out = defaultdict(list)
    for path in sorted((HERE / folder).glob("*-seed*.json")):
        out[path.name.rsplit("-seed", 1)[0]].append(json.loads(path.read_text()))
    return out


def read_log(path: Path) -> list[dict[str, float]]:
    """A run's log as numbers, empty cells left out."""
    with path.open() as f:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]


def logs_of(folder: str, stage: str = "*") -> list[list[dict[str, float]]]:
    """The rows of each log of a folder, of one stage or of all."""
    return [read_log(path) for path in sorted((HERE / folder).glob(f"{stage}-seed*.csv"))]


def cell(values: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main_table(folder: str, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Every figure of a data set beside the blind baseline and chance."""
    runs = load(folder)
    if not runs:
        return []
    n = max(map(len, runs.values()))
    first = next(iter(runs.values()))[0]
    env = first["environment"]
    commits = sorted({r["environment"]["commit"] for rs in runs.values() for r in rs})
    timed = [[r for r in rs if r["train_seconds"]] for rs in runs.values()]  # all before it counted
    minutes = max(r["train_seconds"] / 60 for rs in timed for r in rs) + sum(
        max(r["minutes"] for r in rs) for rs in timed if rs)
    peaks = [max(r["peak_gb"], r["training"]["gb"]) for rs in runs.values() for r in rs]
    peak = max([*peaks, *(row["gb"] for log in logs_of(folder) for row in log[-1:])])
    lines = [
        f"Data: {first['data']}, {first['config']['n_images']} held-out pictures for retrieval; "
        f"{n} seed{'s' * (n > 1)}; {env['cpu']}; torch {env['torch']}; "
        f"commit {', '.join(commits)}. "
        f"Data, training and measuring: {minutes:.1f} minutes at most; "
        f"largest process: {peak:.1f} GB.",
        "",
        "| held-out pictures | value | blind (gray picture) | chance |",
        "|---|---|---|---|",
    ]
    for key, label in MAIN.items():
        for rs in runs.values():
            if key not in leave_out and all(key in r["figures"] for r in rs):
                value, blind = (cell([r[side][key] for r in rs]) for side in ("figures", "blind"))
                chance = rs[0]["chance"].get(key)
                chance = "" if chance is None else f"{chance:.2f}"
                lines.append(f"| {label} | {value} | {blind} | {chance} |")
    return lines


def stage_table(folder: str) -> list[str]:
    """What each stage's log says: length, speed, and the held-out loss before and after."""
    lines = [
        "| stage | steps | ms a step | of it data | minutes | held-out loss before | after |",
        "|---" * 7 + "|",
    ]
    for stage in ("lm", "clip", "caption", "align", "sft"):
        logs = logs_of(folder, stage)
        if logs:
            last = [log[-1] for log in logs]
            ms, data_ms = (statistics.fmean(row[k] for row in last) for k in ("ms", "data_ms"))
            lines.append(
                f"| {stage} | {last[0]['step']:.0f} | {ms:.0f} | {data_ms / ms:.1%} | "
                f"{statistics.fmean(row['min'] for row in last):.1f} | "
                f"{cell([log[0]['val_loss'] for log in logs])} | "
                f"{cell([row['val_loss'] for row in last])} |"
            )
    return lines if len(lines) > 2 else []


def side_by_side(
    title: str, columns: dict[str, list[dict]], keys: tuple[str, ...], minutes: str = ""
) -> list[str]:
    """One column a way of training, one line a figure; no table where a column has no files.

    `minutes` labels a first line with the time that training took, by the clock around it if that
    was kept, else by the run's log.
    """
    if not columns or not all(columns.values()):
        return []
    n = [str(len(reports)) for reports in columns.values()]
    told = f"seeds: {', '.join(n if len(set(n)) > 1 else n[:1])}"
    lines = [
        f"{title} ({told}):", "",
        "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|",
    ]
    if minutes:
        took = [[r["train_seconds"] / 60 or r["training"]["min"] for r in rs]
                for rs in columns.values()]
        means = map(statistics.fmean, took)
        lines.append(f"| {minutes} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
        gb = (max(max(r["training"]["gb"], r["peak_gb"]) for r in rs) for rs in columns.values())
        lines.append("| peak memory, GB | " + " | ".join(f"{m:.1f}" for m in gb) + " |")
    for key in keys:
        cells = [
            cell([r["figures"][key] for r in rs]) if all(key in r["figures"] for r in rs) else "-"
            for rs in columns.values()
        ]
        lines.append(f"| {(MAIN | CAPTIONS | DIALOGUES | AXES)[key]} | " + " | ".join(cells) + " |")
    return lines


def named(folder: str, ways: dict[str, str]) -> dict[str, list[dict]]:
    """Result files by label, in the order of the labels: file name without the seed -> label."""
    runs = load(folder)
    return {label: runs.get(way, []) for way, label in ways.items()}


def ablation_table() -> list[str]:
    """The four ways of the ablation, side by side."""
    return side_by_side(
        "SFT with and without the stages before it, at equal time", named("ablation", WAYS),
        ("answers/exist", "answers/color", "answers/shape", "answers/count", "answers/position",
         "chair/recall", "chair/chair_i"),
        "minutes after language pretraining",
    )


def objectives_table(keys: tuple[str, ...]) -> list[str]:
    """The three objectives of captioning, side by side."""
    objectives = named("captions", OBJECTIVES)
    for reports in objectives.values():  # the matching accuracy stands in the run's log
        for r in reports:
            if "val_match" in r["training"]:
                r["figures"]["match"] = r["training"]["val_match"]
    title = "Captioning at equal time, from the same CLIP and language model"
    return side_by_side(title, objectives, keys, "minutes")


def caption_tables() -> list[list[str]]:
    """The three objectives, what each stage can and cannot do, CapFilt, and the two ways to SFT."""
    runs = named("captions", {"filter": "CapFilt"})
    for reports in runs.values():
        for r in reports:
            r["figures"]["kept"] = r["figures"]["kept"] / r["figures"]["pictures"]
    stages = named("shapes", {"clip": "CLIP"})
    stages |= named("captions", {"blip": "captioner", "sft": "SFT"})
    answers = ("answers/exist", "answers/color", "answers/shape", "answers/size", "answers/count",
               "answers/position", "answers/relation")
    return [
        objectives_table((
            "captions/cider", "captions/bleu4", "captions/rouge_l", "captions/clip_score",
            "captions/clip_score_people", "captions/recall", "captions/chair_i",
            "captions/chair_s", "match",
        )),
        side_by_side(
            "The same held-out questions, stage by stage", stages,
            ("retrieval/image_to_text_r1", "zero_shot/held_out", "captions/cider", *answers,
             "ranked/exist", "ranked/color", "style/word", "style/sentence", "style/list"),
        ),
        side_by_side("CapFilt on 10,000 web captions", runs,
                     ("noisy", "precision", "recall", "kept", "share_web", "share_synthetic")),
        side_by_side(
            "A captioner (lm) that learns from the web, at equal steps", named("captions", WEB),
            ("captions/cider", "captions/bleu4", "captions/recall", "captions/chair_i"),
        ),
        side_by_side(
            "Two ways to a chatbot", named("captions", SFT),
            (*answers, "chair/recall", "chair/chair_i"), "minutes of SFT",
        ),
    ]


def engine_line() -> list[str]:
    """How fast the data engine is, and whether what it writes is true."""
    path = HERE / "instruct" / "engine.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text())
    f = report["figures"]
    return [
        f"`data/instruct.py`, offline, one core of {report['environment']['cpu']}: "
        f"{f['dialogues']:,} dialogues of {f['rounds']:,} questions in {f['seconds']:.0f} s, "
        f"{f['rejected']} rejected. {f['valid'] / f['dialogues']:.0%} pass the checks; of "
        f"{f['claims']:,} claims in them {f['true'] / f['claims']:.0%} are true of the scene. "
        f"{f['kinds']} kinds of question, each in {f['phrasings_of_a_kind_at_least']} phrasings or "
        "more."
    ]


def amounts_table() -> list[str]:
    """Dialogues and steps against what is learned of them, asked in taught and in unread words."""
    columns = {name: f"{label}, 500 steps" for name, label in AMOUNTS.items()}
    columns |= {"long": "30,000, 1,000 steps"}
    rows = [(prefix, key) for key in ("followed/form", "followed/all")
            for prefix in ("", "held_out_")]
    lines = ["| dialogues | " + " | ".join(columns.values()) + " |", "|---" * 6 + "|"]
    for prefix, key in rows:
        runs = named("instruct", {prefix + name: name for name in columns})
        if not all(runs.values()):
            return []
        cells = [cell([r["figures"][key] for r in rs]) for rs in runs.values()]
        words = "never read" if prefix else "taught"
        lines.append(f"| {DIALOGUES[key]}, phrasing {words} | " + " | ".join(cells) + " |")
    return lines


def dialogue_tables() -> list[list[str]]:
    """The data engine: its speed, what is learned from how much, and what each type is good for."""
    keys = ("followed/form", "followed/all", *(f"answers/{k}" for k in (
        "exist", "color", "kind", "size", "count", "position", "relation", "negation",
        "compare_number", "compare_size", "same", "unusual", "next_to", "without", "one_more",
        "unknowable")), "style/word", "style/sentence", "style/list", "refused/due",
        "refused/harmless")
    amounts = AMOUNTS | {"long": "30,000, 1,000 steps"}
    out = [engine_line(), amounts_table()]
    if out[1]:
        out.append(["![number of dialogues, and types left out](instruct/efficiency.png)"])
    for title, ways in (("Number of dialogues", amounts), ("A type left out", LEFT_OUT)):
        for prefix, words in (("", "that are taught"), ("held_out_", "never read")):
            runs = named("instruct", {prefix + k: v for k, v in ways.items()})
            out.append(side_by_side(f"{title}, phrasings {words}", runs, keys))
    return out if any(out) else []


def cifar_table() -> list[str]:
    """Photographs, classified by text prompts."""
    runs = load("cifar10").get("clip", [])
    if not runs:
        return []
    return [
        f"{runs[0]['training']['step']:.0f} steps, "
        f"{cell([r['training']['min'] for r in runs])} minutes; accuracy by text prompts on "
        f"held-out photographs: {cell([r['figures']['zero_shot/all'] for r in runs])}, "
        f"chance {runs[0]['chance']['zero_shot/all']:.2f}.",
        "", "![which class is taken for which](cifar10/confusion.png)",
    ]


def joined(*parts: list[str]) -> str:
    """Tables with an empty line between them; those without results are left out."""
    return "\n\n".join("\n".join(p) for p in parts if p)


def best_rows(name: str) -> list[dict[str, float]]:
    """Of each seed's log the row of the checkpoint that is used later, the lowest held-out loss."""
    return [min((row for row in log if "val_loss" in row), key=lambda row: row["val_loss"])
            for log in logs_of("preferences", name)]


def reward_table() -> list[str]:
    """Reward models beside the noise that their labels have, with and without facts."""
    models = {"reward": "pictures alone", "reward_facts": "and true captions (--facts)"}
    rows = {label: best_rows(name) for name, label in models.items() if best_rows(name)}
    if not rows:
        return []
    lines = ["| held-out answers, pair by pair; people are simulated | " + " | ".join(
        f"{label}, {len(r)} seed{'s' * (len(r) > 1)}" for label, r in rows.items()) + " |",
        "|---" * (len(rows) + 1) + "|"]
    for key in REWARD:
        cells = [cell([row[key] for row in r]) for r in rows.values()]
        lines.append(f"| {REWARD[key]} | " + " | ".join(cells) + " |")
    shares = [cell([row["accuracy/all"] / row["accuracy/ceiling"] for row in r])
              for r in rows.values()]
    return [*lines, f"| agrees with people, as a share of that | {' | '.join(shares)} |"]


def preference_table(keys: tuple[str, ...]) -> list[str]:
    """The chatbot before and after PPO and DPO."""
    columns = named("preferences", PREFERENCES) | named("dpo", {"dpo": "DPO"})
    return side_by_side("Before and after preferences", columns, keys)


def preference_tables() -> list[list[str]]:
    """Reward models, PPO, PPO without its KL, PPO of a model that never learned to chat."""
    out = [reward_table(), preference_table((*SKILLS, *MORE_SKILLS)), side_by_side(
        "What the penalty and SFT are for", named("preferences", NOT_PPO),
        (*SKILLS, *MORE_SKILLS))]
    path = HERE / "preferences" / "rollouts.json"
    if path.is_file():
        f = json.loads(path.read_text())["figures"]
        out.append([f"128 answers of 64 tokens: {f['cache_seconds']:.1f} s with the KV cache, "
                    f"{f['no_cache_seconds']:.1f} s without, {f['times_faster']:.1f} times as long."
                    f" A step of the reward model whose four answers to a prompt share its row: "
                    f"{f['times_faster_packed']:.1f} times faster than with a row each."])
    if (HERE / "preferences" / "overoptimization.png").is_file():
        out.append(["![scores over KL](preferences/overoptimization.png)"])
    return out


def axes_tables() -> list[list[str]]:
    """All methods on five axes; the family of DPO with seed 0; what a judge's errors do."""
    first = {label: [r for r in reports if r["config"]["run"].startswith("runs/seed0/")]
             for label, reports in named("dpo", FAMILY).items()}
    keys, minutes = tuple(AXES), "minutes of the last stage"
    methods = side_by_side("All methods", named("dpo", METHODS), keys, minutes)
    if methods:
        before = {"ppo": "reward", "ppo_facts": "reward_facts"}
        took = [logs_of("preferences", before[name]) if name in before else [] for name in METHODS]
        cells = [f"{statistics.fmean(log[-1]['min'] for log in logs):.1f}" if logs else "-"
                 for logs in took]
        methods.insert(5, f"| and of its reward model | {' | '.join(cells)} |")
    claims = (HERE / "claims.md").read_text().strip().split("\n")
    out = [methods, claims if methods else [],
           side_by_side("The family of DPO", first, keys, minutes)]
    if (HERE / "dpo" / "feedback.png").is_file():
        out.append(["![what is learned from a judge that errs](dpo/feedback.png)"])
    if (HERE / "dpo" / "answers.png").is_file():
        out.append(["![six pictures, a question each, what each method answers](dpo/answers.png)"])
    return out


def block() -> str:
    """The tables that stand in the README: the default world, and what preferences change."""
    skills = tuple(k for k in SKILLS if not k.startswith("followed") and k != "refused/harmless")
    return joined(main_table("shapes", PAGE_ONLY), preference_table(skills))


def report_block() -> str:
    """How long a whole run took, what each stage can do, and both pictures, of its report."""
    _, took, _, skills, *pictures = REPORT.read_text().split("\n\n")
    pictures = "\n".join(pictures).replace("](", "](docs/report/").strip()
    return "\n\n".join((took, skills, pictures))


def section(title: str, *tables: list[str]) -> list[list[str]]:
    """A headline with its tables, or nothing where none has results."""
    return [[f"## {title}"], *tables] if any(tables) else []


def page() -> str:
    """results/README.md: every table."""
    parts = (
        [
            "# Results", "",
            "Written by `python results/tables.py --write` from the files in this folder.",
        ],

        *section("The default world", main_table("shapes"), stage_table("shapes")),
        *section("Captioning", *caption_tables()), *section("Without a stage", ablation_table()),
        *section("The data engine", *dialogue_tables()),
        *section("Preferences", *preference_tables()),
        *section("Five axes", *axes_tables()),
        *section("NLVR", main_table("nlvr")), *section("CIFAR-10", cifar_table()),
    )
    return joined(*parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        text = README.read_text()
        for begin, end, new in ((BEGIN, END, block()), (REPORT_BEGIN, REPORT_END, report_block())):
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{new}\n{end}{rest.split(end)[1]}"
        README.write_text(text)
        (HERE / "README.md").write_text(page())
    elif sys.argv[1:]:
        sys.exit(f"tables.py: error: unknown arguments {' '.join(sys.argv[1:])}; only --write")
    else:
        print(page())
