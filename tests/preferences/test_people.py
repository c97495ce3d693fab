"""minivlm/preferences/people.py: no ranking is lost, the last is undone, agreement is counted."""

import json

import pytest

from minivlm.preferences.people import RankingFile, agreement, agreement_of
from minivlm.preferences.rankings import load_rankings


def ranking(key: str = "a", person: str = "Ann", **changes) -> dict:
    """A ranking of three answers."""
    return {"id": key, "image": "train.npy#0", "kind": "color", "question": "Which color?",
            "responses": ["Red.", "Blue.", "A dog."], "ranking": [1, 2, 2],
            "person": person} | changes


def test_a_ranking_is_on_disk_at_once_and_can_be_trained_from(tmp_path):
    """Catches a ranking that is kept in memory until the end."""
    file = RankingFile(tmp_path / "people.jsonl")
    file.add(ranking())
    file.add(ranking("b", question="Wo?\nDä"))
    assert load_rankings(tmp_path, "people") == RankingFile(file.path).rankings == file.rankings


@pytest.mark.parametrize("torn", [b'{"id": "c", "ima', b'{"id": "c", "image": "\xc3'])
def test_a_line_that_a_kill_cut_off_is_dropped_and_the_others_stay(torn, tmp_path):
    """Catches a file that nobody can open again, and the next ranking behind half a line."""
    file = RankingFile(tmp_path / "people.jsonl")
    file.add(ranking())
    with file.path.open("ab") as f:
        f.write(torn)
    again = RankingFile(file.path)
    again.add(ranking("b"))
    assert [r["id"] for r in load_rankings(tmp_path, "people")] == ["a", "b"]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path):
    """Catches the last ranking lost to an editor that writes no line break at the end."""
    path = tmp_path / "people.jsonl"
    path.write_text("\n".join(json.dumps(ranking(key)) for key in "ab"))
    RankingFile(path).add(ranking("c"))
    assert [r["id"] for r in load_rankings(tmp_path, "people")] == ["a", "b", "c"]


@pytest.mark.parametrize("content", ['[{"id": "a"}]', "notes", '{"id": "a"}'])
def test_a_file_of_something_else_is_not_touched(content, tmp_path):
    """Catches a file that is emptied because it does not end with a line break."""
    path = tmp_path / "people.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="people.jsonl:1"):
        RankingFile(path)
    assert path.read_text() == content


def test_two_processes_may_use_one_file_in_turn(tmp_path):
    """Catches an undo that deletes what another server has added since."""
    ours, theirs = (RankingFile(tmp_path / "people.jsonl") for _ in range(2))
    ours.add(ranking("a"))
    theirs.add(ranking("b", "Bob"))
    assert ours.undo("Ann")["id"] == "a"
    theirs.add(ranking("c", "Bob"))
    assert [r["id"] for r in load_rankings(tmp_path, "people")] == ["b", "c"]


def test_the_last_ranking_of_a_person_is_undone(tmp_path):
    """Catches the last of all, where another person was later, and a file that keeps it."""
    file = RankingFile(tmp_path / "people.jsonl")
    for key, person in (("a", "Ann"), ("b", "Ann"), ("a", "Bob")):
        file.add(ranking(key, person))
    assert file.undo("Ann")["id"] == "b"
    left = [(r["id"], r["person"]) for r in RankingFile(file.path).rankings]
    assert left == [("a", "Ann"), ("a", "Bob")]
    assert file.ranked_by("Ann") == {"a"}
    file.undo("Bob")
    with pytest.raises(ValueError, match="nothing to undo"):
        file.undo("Bob")


@pytest.mark.parametrize("changes, words", [
    ({"ranking": [1, 1, 1]}, "all ties"), ({"ranking": [1, 2]}, "as many ranks"),
    ({"ranking": [True, 2, 3]}, "no number from 1"), ({"ranking": [0, 1, 2]}, "no number from 1"),
    ({"responses": ["Red.", "Red.", "Blue."]}, "equal to another"),
])
def test_what_could_not_be_trained_from_is_refused(changes, words, tmp_path):
    """Catches a line at which training stops, days later."""
    file = RankingFile(tmp_path / "people.jsonl")
    with pytest.raises(ValueError, match=words):
        file.add(ranking(**changes))
    assert not file.path.exists() and not file.rankings


def test_nobody_ranks_the_same_answers_twice(tmp_path):
    """Catches a double click."""
    file = RankingFile(tmp_path / "people.jsonl")
    file.add(ranking())
    with pytest.raises(ValueError, match="ranked before"):
        file.add(ranking())
    file.add(ranking(person="Bob"))


def test_a_file_of_something_else_is_named(tmp_path):
    """Catches rankings added to a file that holds no rankings of people."""
    path = tmp_path / "people.jsonl"
    path.write_text(json.dumps(ranking()) + "\n" + json.dumps({"id": "x"}) + "\n")
    with pytest.raises(ValueError, match=r"people.jsonl:2: no image"):
        RankingFile(path)


def test_agreement_counts_the_pairs_that_both_decide():
    """Of three answers ranked 1 2 2 and 2 1 3: one pair is a tie, 1-2 differ, 1-3 agree."""
    assert agreement_of([1, 2, 2], [2, 1, 3]) == (1, 2)
    assert agreement_of([1, 2, 3], [1, 2, 3]) == (3, 3) and agreement_of([1, 2], [2, 1]) == (0, 1)


def test_people_are_compared_with_the_scene_and_with_each_other():
    """Catches ranks compared in another order of the answers, a good answer taken for a bad one.

    The cup is red. Bob saw the answers in another order and ranks as Ann. Cy disagrees.
    """
    record = {"id": "r", "image": "train.npy#0", "border": "", "objects": [
        {"name": "cup", "attributes": {"color": "red", "size": "large"},
         "box": [0, 0, 0.5, 0.5], "place": "top left"}]}
    q = {"id": "a", "kind": "color", "expect": ["red"], "wrong": ["blue"], "style": "", "form": ""}
    said = ["The cup is red.", "The cup is blue."]
    rankings = [
        ranking(responses=said, ranking=[1, 2]),
        ranking(person="Bob", responses=said[::-1], ranking=[2, 1]),
        ranking(person="Cy", responses=said, ranking=[2, 1]),
        ranking("b", person="Bob", responses=said, ranking=[1, 2]),  # an unknown question
    ]
    phrases = {"red cup": "red cup", "cup": "cup"}
    assert agreement(rankings, {"train.npy#0": record}, {"a": q}, phrases) == {
        "Ann and the scene": (1, 1), "Bob and the scene": (1, 1), "Cy and the scene": (0, 1),
        "Ann and Bob": (1, 1), "Ann and Cy": (0, 1), "Bob and Cy": (0, 1)}
    del record["objects"]
    assert list(agreement(rankings, {"train.npy#0": record}, {"a": q}, phrases)) == [
        "Ann and Bob", "Ann and Cy", "Bob and Cy"], "without a scene there is no truth"
