"""The exercises of docs/exercises.md: the reader's exercises.py is checked, if there is one.

Without it the project's own code is checked by the same checks, so that they are known to accept
what is right. That they refuse what is wrong is tested in both cases.
"""

import ast
import re
from pathlib import Path

import own_answers
import pytest
import torch
from checks import EXERCISES, Wrong, check, shown
from wrong_answers import BROKEN, WRONG, load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "exercises.md").read_text()
NAMES = list(EXERCISES)
READERS = ROOT / "exercises.py"
ANSWERS = load(READERS) if READERS.exists() else own_answers
# of each function of exercises_broken.py the wrong piece, and what repairs it
REPAIRS = {
    "packing": ("mask[begin:end, shared:end]", "mask[begin:end, begin:end]"),
    "whiten": ("(x - mean).square().sum()", "(x - mean)[mask].square().sum()"),
    "ppo": ("(clipped * advs)", "torch.minimum(ratio * advs, clipped * advs)"),
}


def sections() -> dict[str, str]:
    """The page's exercises: name -> text."""
    parts = re.split(r"^## \d+\. .*\(`(\w+)`\)$", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def functions_of(path: Path) -> list[str]:
    """The functions and methods of a file, methods as Class.method."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
            names += [node.name, *(f"{node.name}.{method}" for method in methods)]
    return names


def fault_of(name: str) -> str:
    """What is wrong with the answer to an exercise, in words; empty if it is right."""
    answer = getattr(ANSWERS, name, None)
    if answer is None:
        return "exercises.py has no such function"
    try:
        check(name, answer)
    except NotImplementedError:
        return "it is not written yet in exercises.py"
    except Wrong as fault:
        return str(fault)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_right(name):
    """Catches a wrong answer of the reader, or, without his file, a check that refuses ours."""
    fault = fault_of(name)
    if fault:
        pytest.fail(f"{name}: {fault}", pytrace=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_check_refuses_what_is_wrong(name):
    """Catches a check that cannot fail, and one that calls a known mistake by another's name."""
    assert len(WRONG[name]) >= 3
    for about, mistake in WRONG[name].items():
        with pytest.raises(Wrong) as caught:
            check(name, mistake)
        assert str(caught.value).endswith(f"  The same comes out if {about}.")


def test_one_line_repairs_each_broken_function(tmp_path):
    """Catches a function with a second bug, which the page does not announce."""
    assert list(REPAIRS) == functions_of(DOCS / "exercises_broken.py")
    text = (DOCS / "exercises_broken.py").read_text()
    for name, (old, new) in REPAIRS.items():
        assert text.count(old) == 1
        repaired = tmp_path / f"{name}.py"
        repaired.write_text(text.replace(old, new))
        check(name, getattr(load(repaired), name))


def test_page_start_and_checks_name_the_same_exercises():
    """Catches an exercise without a check, a check without an exercise, another order."""
    assert list(sections()) == functions_of(DOCS / "exercises_start.py") == NAMES
    assert WRONG.keys() == EXERCISES.keys() and len(NAMES) == 12
    for name, text in sections().items():
        commands = re.findall(r"`python -m pytest tests/exercises -k (\w+)`", text)
        assert commands == [name]
        parts = re.findall(r"^\*\*(\w+)\.\*\* ", text, flags=re.MULTILINE)
        assert parts == ["Read", parts[1], "Known", "Check", "Hint"]
        assert parts[1] == ("Repair" if hasattr(BROKEN, name) else "Write")


def test_a_command_runs_its_exercise_alone():
    """Catches a name that is a part of another test's name, which -k would run as well."""
    tests = [name for name in globals() if name.startswith("test_")]
    for name in NAMES:
        others = [*tests, Path(__file__).name, *(n for n in NAMES if n != name)]
        assert not [other for other in others if name in other]


def test_what_the_page_says_to_read_is_there():
    """Catches a function or a file that has been renamed since."""
    for name, text in sections().items():
        to_read = re.search(r"^\*\*Read\.\*\* (.*?)\n\n", text, flags=re.DOTALL | re.MULTILINE)[1]
        quoted = re.findall(r"`(.+?)`", to_read)
        files = [text for text in quoted if text.endswith(".py")]
        functions = [text for text in quoted if not text.endswith(".py")]
        known = [function for file in files for function in functions_of(ROOT / file)]
        assert files and functions and not set(functions) - set(known), name


def test_numbers_worked_by_hand_stand_in_the_page():
    """Catches a number of the page that the check no longer expects."""
    for name, text in sections().items():
        by_hand = [case for case in EXERCISES[name].cases if case.by_hand]
        assert by_hand, name
        for case in by_hand:
            for right in case.right:
                number = shown(torch.as_tensor(right).double().round(decimals=4))
                assert number in " ".join(text.split()), f"{name}: {number}"


def test_a_message_says_what_was_returned_in_place_of_a_result():
    """Catches a traceback from the check's own lines where the reader needs a sentence."""
    with pytest.raises(Wrong, match="^returned NoneType, expected loss$"):
        check("info_nce", lambda similarity, logit_scale: None)
    with pytest.raises(Wrong, match="^returned Tensor, expected the tuple of loss and weight$"):
        check("dpo", lambda *args: args[0])
    with pytest.raises(Wrong, match=r"\(1, 4, 1\), which are picture, patch, channel\n  got"):
        check("patches", lambda images, weight: images)
    with pytest.raises(Wrong, match="^changes one of its arguments"):
        check("splice", lambda emb, is_image, img_emb: emb.zero_())
