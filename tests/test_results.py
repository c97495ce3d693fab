"""The scripts of results/: tables of partial results, curves, questions from outside."""

import doctest
import importlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    """Import a script of results/ as it imports its neighbors when it is run."""
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module


def result(figures: dict, blind: dict | None = None) -> dict:
    """What evaluate.py writes, with these figures."""
    return {
        "data": "book", "figures": figures, "blind": blind or {},
        "chance": {"answers/exist": 0.5}, "config": {"n_images": 1000}, "minutes": 1.0,
        "environment": {"cpu": "CPU x 2", "torch": "2", "commit": "abc"},
        "train_seconds": 60, "peak_gb": 1.0, "training": {"gb": 1.0, "min": 1.0},
    }


@pytest.fixture
def tables(script, monkeypatch, tmp_path):
    """tables.py with an empty results folder."""
    module = script("tables")
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


@pytest.mark.parametrize("name", ["charts", "claims", "leave_out", "overoptimization", "variants"])
def test_the_examples_of_the_scripts_hold(script, name):
    """Catches a formula whose worked example no longer comes out."""
    done = doctest.testmod(script(name))
    assert done.attempted and not done.failed


def test_a_script_of_measurements_goes_on_where_it_stopped(tmp_path):
    """Catches what is made twice, a failure beside others that nobody notices, what is not made
    anew though its command has changed.
    """
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results" / "common.sh", tmp_path / "results")
    (tmp_path / "data/book/prepared").mkdir(parents=True)
    for name in ("venv.sh", "speedrun.sh", "data/book/prepared/meta.json"):
        (tmp_path / name).write_text("python=true\n")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    path = tmp_path / "results" / "try.sh"

    def run(code: int, word: str = "made") -> tuple[set[str], bool]:
        path.write_text(
            'source "$(dirname "$0")/common.sh"\n'
            f'say() {{ echo "{word} $1"; }}\nfail() {{ return "$CODE"; }}\n'
            "beside one say 1\nbeside two say 2\nbeside bad fail\nbeside three say 3\n"
            "all_done\nonce four say 4\necho end\n")
        done = subprocess.run(["bash", path], capture_output=True, text=True,
                              env=os.environ | {"CODE": str(code)})
        return set(done.stdout.splitlines()), done.returncode == 0

    said, ended = run(3)
    assert {"made 1", "made 2"} <= said and "end" not in said and not ended
    said, ended = run(0)
    assert {"made 4", "end"} <= said <= {"made 3", "made 4", "end"} and ended
    assert run(0) == ({"end"}, True)
    assert run(0, "again") == ({"again 1", "again 2", "again 3", "again 4", "end"}, True)


def test_nine_of_ten_answers_are_yes(script):
    """Catches the yeses left out instead, and dialogues without either."""
    def record(answer: str) -> dict:
        return {"conversations": [{"from": "human", "value": "Is there?"},
                                  {"from": "gpt", "value": answer}]}

    rows = [record("It is at the left, so yes."), record("It is not, so no."), record("no"),
            record("Two cups.")] * 500
    kept = script("variants").mostly_yes(rows, random.Random(0))
    n_yes = sum(r["conversations"][1]["value"].endswith("yes.") for r in kept)
    assert n_yes == 500 and 500 + 500 + 30 < len(kept) < 500 + 500 + 80  # 500 / 9 = 56


def test_the_best_of_few_is_worth_what_drawing_would_give(script):
    """Catches an estimate that is of the worst, of the mean, or of draws with one put back."""
    module, rng = script("overoptimization"), np.random.default_rng(0)
    scores, worth = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    for n in (1, 3, 8):
        drawn = []
        for b in range(3):
            for chosen in itertools.combinations(range(8), n):
                drawn.append(worth[b, max(chosen, key=lambda i: scores[b, i])])
        assert module.of_best(scores, worth, n) == pytest.approx(np.mean(drawn))
    d = np.linspace(0.3, 2, 9)
    fit = module.fitted(d, d * (1.5 - 0.4 * np.log(d)), is_rl=True)
    assert (fit["a"], fit["b"], fit["r2"]) == pytest.approx((1.5, 0.4, 1))


def put(tables, name: str, figures: dict, blind: dict | None = None) -> None:
    """Write a result of the book."""
    folder = tables.HERE / "book"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(result(figures, blind)))


def test_pages_of_no_results_are_empty(tables):
    """Catches a page that can only be written once every result is there."""
    assert tables.block() == "" and tables.row() == []
    assert "##" not in tables.page() and tables.page().startswith("# Results\n")


def test_a_stage_without_results_has_no_column(tables):
    """Catches a table that waits for stage 4, and wrong means."""
    put(tables, "sft-seed0.json", {"answers/exist": 0.8}, {"answers/exist": 0.4})
    put(tables, "sft-seed1.json", {"answers/exist": 1.0}, {"answers/exist": 0.6})
    lines = tables.front_table()
    assert "seeds: 2" in lines[0]
    assert lines[2] == "|  | chance | SFT, blind | SFT |"
    # by hand: (.4 + .6) / 2 and (.8 + 1) / 2; standard deviations are .2 / sqrt(2) = .141
    row = "| answers: is there a ...? | 0.50 | 0.500 ± 0.141 | 0.900 ± 0.141 |"
    assert lines[4:] == [row]
    put(tables, "dpo-seed0.json", {"answers/exist": 0.7})
    lines = tables.front_table()
    assert "seeds: 2, 1" in lines[0]
    assert lines[2].endswith("| SFT | DPO |") and lines[4].endswith("| 0.700 |")


def test_what_was_not_measured_is_a_dash(tables):
    """Catches a missing figure of one stage that stops the page or counts as 0."""
    put(tables, "sft-seed0.json", {"answers/exist": 0.8, "answers/strange": 0.25})
    put(tables, "ppo-seed0.json", {"answers/exist": 0.75})
    lines = tables.front_table()
    label = tables.LABELS["answers/strange"]
    assert f"| {label} |  | - | 0.250 | - |" in lines
    assert label in tables.page()
    put(tables, "sft-seed1.json", {"answers/exist": 0.8})
    assert f"| {label} |  | - | 0.250 (1 seed) | - |" in tables.front_table()


def test_the_quiz_is_a_row_and_clip_a_table_of_its_own(tables):
    """Catches taught phrasings that are taken for unseen ones."""
    put(tables, "sft-seed0.json", {"followed/all": 0.8})
    put(tables, "quiz-seed0.json", {"followed/all": 0.9})
    put(tables, "clip-seed0.json", {"zero_shot/held_out": 0.75}, {"zero_shot/held_out": 0})
    assert tables.front_table()[-1].endswith("| - | 0.800 |")
    last = tables.aside_table()[-1]
    assert "taught" in last and last.endswith("| 0.900 |")
    assert tables.clip_table()[-1].endswith("|  | 0.000 | 0.750 |")


def test_the_report_says_where_the_time_goes(script, tmp_path):
    """Catches a part that gets the time of the one before it, and shares of something else."""
    report = script("report")
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "metrics.csv").write_text(
        "step,mfu,gb,min\n0,,0.4,0.1\n10,0.4,0.5,0.5\n20,0.6,0.5,1.0\n30,0.7,0.5,1.25\n")
    [row] = report.time_table(tmp_path, ["lm"])[2:]
    assert row == "| LM | 1.2 | 100% | 0.60 | 0.50 |"
    (tmp_path / "times.csv").write_text("part,began\ndata,0\nlm,30\nmeasure LM,120\nreport,150\n")
    rows = report.time_table(tmp_path, ["lm"])[2:]
    assert rows == ["| data | 0.5 | 20% |  |  |", "| LM | 1.5 | 60% | 0.60 | 0.50 |",
                    "| measure LM | 0.5 | 20% |  |  |"]


def test_smoothing_keeps_straight_lines_and_their_ends(script):
    """Catches a mean that lags behind the curve, or that pulls its ends to the middle."""
    charts = script("charts")
    line = [(step, 3.0 - 0.5 * step) for step in range(6)]
    assert charts.smooth(line) == line
    assert charts.smooth([(0, 1.0), (1, 4.0), (2, 1.0)], reach=1)[1] == (1, 2.0)  # 6 / 3
    assert charts.smooth([]) == []


def test_a_logarithmic_axis_puts_equal_factors_at_equal_heights(script):
    """Catches dots and lines that disagree about the scale."""
    charts = script("charts")
    sheet = Image.new("RGB", (300, 300), "white")
    dots = [[(10, 1.0), (10, 10.0), (10, 100.0)]]
    charts.panel(
        ImageDraw.Draw(sheet), (50, 50, 250, 250), [], "", "", colors=["#ff0000"],
        dots=dots, is_log=True,
    )
    pixels = sheet.load()
    x = round(50 + 200 / 1.05)
    red = [y for y in range(300) if pixels[x, y] == (255, 0, 0)]
    centers = [[y for y in red if abs(y - at) < 8] for at in (59, 150, 241)]
    # by hand: 2 decades and 5 % of air on both sides share 200 pixels: 90.9 a decade
    middles = [sum(ys) / len(ys) for ys in centers]
    assert middles == pytest.approx([59.1, 150, 240.9], abs=1)


def test_a_verdict_holds_for_its_answer_only(script):
    """Catches a verdict that outlives the answer that it was given to."""
    foreign = script("foreign")
    entries = [
        {"image": "val.npy#1", "question": "Who?", "answer": "A cat.", "verdict": "wrong"},
        {"image": "val.npy#2", "question": "Why?", "answer": "So.", "verdict": "sensible"},
        {"image": "val.npy#1", "question": "New?"},
    ]
    new = foreign.answered(entries, ["A cat.", "Because.", "a|b\nc"])
    assert [e.get("verdict") for e in new] == ["wrong", None, None]
    page = foreign.write_page(new)
    assert "Of 3 answers: 1 wrong, 2 not judged." in page
    assert "| 0 | Who? | A cat. | wrong |" in page
    assert "| 1 | Why? | Because. | not judged |" in page
    assert r"| 0 | New? | a\|b<br>c | not judged |" in page


def test_a_sentence_that_tells_a_fact_claims_nothing_about_the_picture(script):
    """Catches "The sun is a star." counted as a false claim about a thing in sight."""
    engine = script("engine")
    answer = "The thing at the top is a sun. The sun is a star."
    left = engine.without_facts(answer, {"the sun is a star"})
    assert left == "The thing at the top is a sun."


@pytest.mark.parametrize("entry, match", [
    ({"image": "val.npy#1"}, "question 0 has no question"),
    ({"image": "a", "question": "b", "verdict": "good"}, "expected one of sensible"),
])
def test_a_faulty_question_is_refused(script, entry, match):
    """Catches a verdict that no count knows."""
    with pytest.raises(ValueError, match=match):
        script("foreign").check_questions([entry])


def test_what_is_unusual_is_told_of_visible_things_alone(script):
    """Catches a picture that is called funny for what nobody can see in it."""
    report = script("report")
    seen = {"unusual": "a cat is green, and cats are gray", "hidden": False}
    hidden = {"unusual": "a fish is in the sky, and fish swim", "hidden": True}
    assert report.oddities({"objects": [hidden, seen, {"hidden": False}]}) == [
        "a cat is green, and cats are gray"
    ]
    assert report.oddities({}) == []


def test_a_conversation_remembers_what_was_said(script):
    """Catches questions of one conversation that do not know of each other."""
    asking = script("asking")
    heard = []

    def ask(questions: list[dict]) -> list[str]:
        [q] = questions
        heard.append([turn["value"] for turn in q["before"]])
        return ["" if q["question"] == "One?" else "Two."]

    talk = asking.converse(ask, "val.npy#0", ("One?", "Two?"))
    assert talk == [("One?", "..."), ("Two?", "Two.")]
    assert heard == [[], ["One?", "..."]]


@pytest.fixture
def claims(script, monkeypatch, tmp_path):
    """claims.py with an empty results folder."""
    module = script("claims")
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def seeds(claims, name: str, *figures: dict) -> None:
    """Write a result file for each seed."""
    path = claims.HERE / f"{name}-seed0.json"
    path.parent.mkdir(exist_ok=True)
    for seed, values in enumerate(figures):
        path.with_name(path.name.replace("seed0", f"seed{seed}")).write_text(
            json.dumps(result(values)))


@pytest.mark.parametrize("first, second, says, want", [
    ((0.9, 0.8, 0.85), (0.5, 0.4, 0.5), "more", "borne out"),
    ((0.9, 0.8, 0.85), (0.5, 0.4, 0.5), "less", "the opposite"),
    ((0.9, 0.8, 0.85), (0.5, 0.4, 0.5), "same", "no: more"),
    ((0.5, 0.4, 0.5), (0.9, 0.8, 0.85), "less", "borne out"),
    ((0.5, 0.4, 0.5), (0.9, 0.8, 0.85), "same", "no: less"),
    ((0.9, 0.4, 0.9), (0.5, 0.5, 0.5), "more", "no difference"),  # one seed says otherwise
    ((0.9, 0.4, 0.9), (0.5, 0.5, 0.5), "same", "borne out"),
    ((0.50, 0.70, 0.5), (0.49, 0.4, 0.49), "more", "no difference"),  # mean .107, error .097
    ((0.5,), (0.49, 0.1), "more", "no difference (1 seed)"),  # seeds that both have
    ((0.5,), (0.45, 0.9), "more", "borne out (1 seed)"),
])
def test_a_verdict_follows_from_the_figures(claims, first, second, says, want):
    """Catches a direction turned round, seeds compared crosswise, a spread that is not asked."""
    got = claims.verdict(dict(enumerate(first)), dict(enumerate(second)), says)
    assert got == want


def test_a_row_shows_what_is_in_the_files_and_nothing_else_is_claimed(claims):
    """Catches a number from elsewhere, another side's file, a row of what nobody measured."""
    side = claims.Side
    claim = claims.Claim("A is more", "a paper", "answers/exist", "more", side("A", "x/a"),
                         side("B", "x/b"), "make")
    assert claims.row(claim) is None
    seeds(claims, "x/a", {"answers/exist": 0.9}, {"answers/exist": 0.7})
    assert claims.row(claim) is None
    seeds(claims, "x/b", {"answers/exist": 0.123})
    assert "A 0.900, B 0.123 | borne out (1 seed) | `make`" in claims.row(claim)[0]
    seeds(claims, "x/b", {"answers/exist": 0.123}, {"answers/exist": 0.101})
    text, told = claims.row(claim)
    assert told == "borne out"
    assert "A 0.800 ± 0.141 (2 seeds), B 0.112 ± 0.016 (2 seeds) | borne out |" in text
    (claims.HERE / "x" / "log-seed0.csv").write_text(
        "step,answers/exist,val_loss\n0,.5,9\n5,,\n10,.75,2\n20,1,3\n")
    log = claims.Claim("A is more", "a paper", "answers/exist", "more", side("A", "x/a"),
                       side("log", "x/log"), "make")
    assert "A 0.900, log 0.750" in claims.row(log)[0]
    even = claims.Claim("A is more", "a paper", "answers/exist", "more", side("A", "x/a"),
                        side("even", "", value=0.5), "make")
    assert "A 0.800 ± 0.141 (2 seeds), even 0.500 | borne out |" in claims.row(even)[0]
    other = claims.Claim("A is more", "a paper", "answers/exist", "more", side("A", "x/a"),
                         side("B", "x/b", figure="answers/color"), "make")
    assert claims.row(other) is None
    chance = claims.Claim("A is more", "a paper", "answers/exist", "more", side("A", "x/a"),
                          side("chance", "x/a", "chance"), "make")
    assert "chance 0.500 ± 0.000" in claims.row(chance)[0]


def test_the_page_of_claims_is_what_the_files_say(script):
    """Catches a number on docs/claims.md that is in no result file, and a claim without a way to
    measure it.
    """
    claims = script("claims")
    assert claims.PAGE.read_text() == claims.page()
    for section in claims.SECTIONS.values():
        for claim in section:
            assert (ROOT / claim.made).is_file(), claim
            assert claim.says in (claims.MORE, claims.LESS, claims.SAME), claim
            assert claim.source == claims.ASKED or re.search(
                r"arXiv:\d{4}\.\d{5}|R1-V, 2025|CRaFT", claim.source), claim
    every = {claim.claim for section in claims.SECTIONS.values() for claim in section}
    assert set(claims.WHY) <= every
    for _, _, test in claims.EXACT:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text()
