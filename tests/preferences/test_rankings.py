"""minivlm/preferences/rankings.py and agreement.py: rankings that can be learned from, and how well
scores agree with them.
"""

import json

import pytest
import torch

from minivlm.conversation import answer_row, append_unread
from minivlm.evaluation.raters import rating_of
from minivlm.loading.batches import collate
from minivlm.metrics import calibration_error
from minivlm.preferences.agreement import agreement, win_share
from minivlm.preferences.rankings import check_ranking, load_rankings

GOOD = {"id": "a", "image": "x", "question": "What?", "responses": ["a", "b", "c"],
        "ranking": [2, 1, 2]}


@pytest.mark.parametrize("changes, reason", [
    ({}, ""), ({"ranking": [1, 1, 1]}, "all ties"),
    ({"responses": ["a", " ", "c"]}, "empty answer"),
    ({"responses": ["a", "b", "a"]}, "answer equal to another"),
    ({"ranking": [1, 2]}, "as many ranks as answers are needed"),
    ({"ranking": 3}, "as many ranks as answers are needed"),
    ({"ranking": [0, 1, 2]}, "rank that is no number from 1"),
    ({"ranking": [1.5, 1, 2]}, "rank that is no number from 1"),
    ({"ranking": [True, 1, 2]}, "rank that is no number from 1"),
    ({"responses": ["a", "b", "a "]}, "answer equal to another"),
    ({"ratings": [{"x": 1}]}, "as many ratings as answers are needed"),
    ({"ratings": [{"x": 1}, {"x": float("nan")}, {"x": 2}]}, "rating that is no number"),
    ({"ratings": [{"x": 1}, {}, {"x": 2}]}, "rating that is no number"),
    ({"ratings": [{"x": 1}, {"x": 1.5}, {"x": 2}]}, ""),
])
def test_a_ranking_that_cannot_be_used_says_why(changes, reason, tmp_path):
    """Catches a reward model that learns from nothing, or from an answer against itself."""
    assert check_ranking(GOOD | changes) == reason
    lines = [GOOD, GOOD | {"id": "second"} | changes]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if reason:
        with pytest.raises(ValueError, match=f"p.jsonl:2: {reason}"):
            load_rankings(tmp_path, "p")
    else:
        assert load_rankings(tmp_path, "p") == lines


def test_a_missing_file_names_the_script_that_makes_it(tmp_path):
    """Catches a bare file name as the whole message."""
    with pytest.raises(FileNotFoundError, match="run data/preferences.py first"):
        load_rankings(tmp_path, "preferences")


def test_a_row_is_read_up_to_its_last_token():
    """Catches a score given before the end token has been read: collate drops one."""
    rows = [answer_row([1, 2], [3, 9]), answer_row([1], [9])]
    batch = collate([append_unread(row, 9) for row in rows], 0, 8)
    assert batch.idx.tolist() == [[1, 2, 3, 9], [1, 9, 0, 0]] and batch.lengths.tolist() == [4, 2]


def test_pairs_won_worked_by_hand():
    """Catches pairs read the wrong way round, and equals counted as won."""
    assert win_share([3, 2, 1], [(0, 1), (0, 2), (1, 2)]) == 1
    assert win_share([3, 2, 1], [(1, 0)]) == 0
    assert win_share([1, 1], [(0, 1)]) == 0.5


def test_calibration_by_definition():
    """Catches bins that mix, a sum that is not weighted, a probability of 1 outside of all bins."""
    p = torch.tensor([0.05, 0.05, 0.95, 0.95, 0.95, 1.0])
    came = torch.tensor([False, True, True, True, True, False])
    want = 2 / 6 * abs(0.05 - 0.5) + 4 / 6 * abs((3 * 0.95 + 1) / 4 - 0.75)
    assert calibration_error(p, came) == pytest.approx(want, abs=1e-6)
    many = torch.rand(20000)
    assert calibration_error(many, torch.rand(20000) < many) < 0.02
    assert calibration_error(many, torch.rand(20000) < 0.5) > 0.2


def rated(*values):
    """Ratings of three axes with these means."""
    return [dict.fromkeys(("helpfulness", "faithfulness", "ethics"), v) for v in values]


def test_a_reward_model_is_judged_as_worked_by_hand():
    """Catches a gap taken from ranks, ties that carry a pair, length counted for equal lengths."""
    r = [GOOD | {"responses": ["aa", "b", "cccc"], "ranking": [1, 2, 2], "ratings": rated(4, 3, 5)},
         GOOD | {"responses": ["a", "b"], "ranking": [2, 1], "ratings": rated(2, 2.4)}]
    got = agreement(r, [[1.0, 0.0, 2.0], [0.0, -1.0]])
    # ranked pairs: aa > b (gap 1, won), aa > cccc (gap 1, lost), b > a (gap .4, lost)
    assert got["accuracy/all"] == pytest.approx(1 / 3)
    assert (got["accuracy/gap_0-0.5"], got["pairs/gap_0-0.5"]) == (0, 1)
    assert (got["accuracy/gap_1-"], got["pairs/gap_1-"]) == (0.5, 2)
    assert got["accuracy/ceiling"] == pytest.approx(2 / 3)  # the ratings want cccc before aa
    assert got["truth/all"] == pytest.approx(3 / 4)         # aa > b, cccc > aa, cccc > b; not b > a
    # longer ones: aa > b, cccc > aa, cccc > b
    assert got["length/model"] == 1 and got["length/truth"] == 1
    assert got["length/people"] == pytest.approx((1 + 0 + 0.5) / 3)
    p = torch.tensor([1.0, -1.0, 1.0]).sigmoid()            # i before j by place: P(aa before cccc)
    want = calibration_error(p, torch.tensor([True, True, False]))
    assert got["calibration/error"] == pytest.approx(want)
    bare = [{k: v for k, v in x.items() if k != "ratings"} for x in r]
    got = agreement(bare, [[1.0, 0.0, 2.0], [0.0, -1.0]])
    assert got.keys() == {"accuracy/all", "calibration/error", "length/model", "length/people"}
    assert rating_of({"a": 1, "b": 2}) == 1.5


def test_scores_that_tell_nothing_win_half_of_the_pairs():
    """Catches an accuracy of 0 or 1 for a constant score."""
    got = agreement([GOOD | {"ratings": rated(1, 3, 1)}], [[0.5, 0.5, 0.5]])
    assert got["accuracy/all"] == got["truth/all"] == 0.5 and got["accuracy/ceiling"] == 1
