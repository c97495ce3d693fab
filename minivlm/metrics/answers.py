"""Is a short answer right, and has it the form that was asked for? Includes VQA's accuracy."""

import re


def words_of(text: str) -> str:
    """Lower case, letters and digits of any script only, single spaces: " the top left "."""
    return " " + " ".join(re.findall(r"(?:[^\W_]|')+", text.lower())) + " "


def answer_ok(answer: str, expect: list[str], wrong: list[str]) -> bool:
    """True if the answer holds one of the expected phrases and none of the wrong ones.

    >>> answer_ok("The circle is red.", ["red"], ["blue"])
    True
    >>> answer_ok("red or blue", ["red"], ["blue"])
    False
    """
    said = words_of(answer)
    return any(words_of(e) in said for e in expect) and not any(words_of(w) in said for w in wrong)


def style_ok(answer: str, style: str) -> bool:
    """True if an answer has the asked form.

    "word": one word; "sentence": one sentence of at least three words; "list": every line starts
    with "- "; "detail": full sentences, at least one; "": anything.

    >>> style_ok("Red", "word"), style_ok("It is red.", "word")
    (True, False)
    >>> style_ok("- red circle\\n- blue ring", "list")
    True
    """
    text = answer.strip()
    n_words = len(words_of(text).split())
    if style == "word":
        return n_words == 1
    if style == "sentence":
        n_ends = len(re.findall(r"[.!?](?:\s|$)", text))
        return n_words >= 3 and n_ends == 1 and text[-1] in ".!?" and "\n" not in text
    if style == "list":
        return bool(text) and all(line.startswith("- ") for line in text.splitlines())
    if style == "detail":
        return n_words >= 3 and text[-1:] in (".", "!", "?") and "\n" not in text
    return True


def is_unsure(answer: str) -> bool:
    """True if the answer says that it does not know: "not sure"."""
    return "not sure" in answer.lower()

# contracted forms that VQA's annotators wrote without one of their apostrophes
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's i'd've isn't it'd it'd've it'll ma'am might've "
    "mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
).split()

REPAIRED = {
    form[:i] + form[i + 1:]: form
    for form in CONTRACTIONS for i, letter in enumerate(form) if letter == "'"
} | {"somebody'd": "somebodyd"}  # as the official table has it

DIGITS = {
    w: str(i)
    for i, w in enumerate("zero one two three four five six seven eight nine ten".split())
}

PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"


def normalize_answer(answer: str) -> str:
    """Bring an answer into the form VQA compares: lower case, digits, no articles, no punctuation.

    A sign is cut out where it stands beside a space, and everywhere if the answer holds a number
    like 1,000; else it becomes a space. A full stop goes unless a digit follows.

    Source: Antol et al. 2015, arXiv:1505.00468, and its official code, GT-Vision-Lab/VQA,
    vqaEval.py.

    >>> normalize_answer("The two red-brick houses."), normalize_answer("dont know")
    ('2 red brick houses', "don't know")
    >>> normalize_answer("1,000.5")
    '1000.5'
    """
    text = answer
    thousands = re.search(r"\d,\d", answer) is not None
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside_space or thousands else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [{"none": "0", **DIGITS}.get(w, w) for w in text.lower().split()]
    return " ".join(REPAIRED.get(w, w) for w in words if w not in ("a", "an", "the"))


def vqa_accuracy(answer: str, people: list[str]) -> float:
    """How far an answer agrees with people's: the mean over people of min(1, others who agree / 3).

    Leaving each person out in turn compares the answer with the nine others, as people themselves
    are compared. Answers are normalized only if people do not all say the same.

    Args:
        answer: what the model said.
        people: what people said, ten of them in VQA.

    Returns:
        0 .. 1; with ten people 0.3, 0.6, 0.9, 1 for one, two, three, four and more who agree.

    Raises:
        ValueError: if nobody said anything.

    Source: Antol et al. 2015, arXiv:1505.00468, section 3; the official code, GT-Vision-Lab/VQA,
    vqaEval.py.

    >>> round(vqa_accuracy("two", ["2"] * 2 + ["three"] * 8), 3)  # 2 * 1/3 + 8 * 2/3, over 10
    0.6
    """
    if not people:
        raise ValueError("nobody answered: there is nothing to agree with")
    tidy = [" ".join(p.split("\n")).replace("\t", " ").strip() for p in (answer, *people)]
    if len(set(tidy[1:])) > 1:
        tidy = [normalize_answer(text) for text in tidy]
    agree = [p == tidy[0] for p in tidy[1:]]
    return sum(min(1.0, (sum(agree) - own) / 3) for own in agree) / len(people)
