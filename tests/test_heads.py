"""minivlm/heads.py: scores are read at the tokens of the answer, values at every token."""

import pytest
import torch
import torch.nn.functional as F

from minivlm.conversation import pack_unread
from minivlm.heads import POOLS, RewardModel, ValueModel
from minivlm.loading.batches import collate

PICTURE = [258] * 4  # image tokens a picture, and the placeholder's id, of conftest's tiny models
IDX = torch.tensor([[1, *PICTURE, 2, 3, 257], [*PICTURE, 4, 5, 6, 7], [*PICTURE, 8, 9, 257, 257]])
# the answers are 3; 5, 6, 7; 9: a segment begins with the prompt's last token
SEGMENTS = torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1], [0] * 4 + [1] * 4, [0] * 4 + [1, 1, -1, -1]])
ANSWERS = ([6], [5, 6, 7], [5])  # the places of the answers' tokens


@pytest.mark.parametrize("pool", POOLS)
def test_a_score_is_read_at_the_tokens_of_the_answer(vlm, pool):
    """Catches a score that pads, the prompt or another token move, and one that does not see."""
    model, images = RewardModel(vlm, pool).eval(), torch.randn(3, 3, 16, 16)
    score = model(IDX, SEGMENTS, images)
    hidden = vlm.hidden(IDX, images)
    read = [at[-1:] if pool == "last" else at for at in ANSWERS]
    want = torch.stack([model.head(hidden[b, at]).mean() for b, at in enumerate(read)])
    torch.testing.assert_close(score, want)
    longer = F.pad(IDX, (0, 3), value=9), F.pad(SEGMENTS, (0, 3), value=-1)
    torch.testing.assert_close(model(*longer, images), score, rtol=1e-4, atol=1e-5)
    assert ((model(IDX, SEGMENTS, images.roll(1, 0)) - score).abs() > 1e-4).all()
    img_emb = vlm.projector(vlm.vit.features(images))
    torch.testing.assert_close(model(IDX, SEGMENTS, img_emb=img_emb), score)
    with pytest.raises(ValueError, match="pool 'first' is not one of mean, last"):
        RewardModel(vlm, "first")


@pytest.mark.parametrize("pool", POOLS)
def test_packed_answers_are_scored_as_if_each_stood_alone(vlm, pool):
    """Catches a score of another answer, of another place, or in another order."""
    model, images = RewardModel(vlm, pool).eval(), torch.randn(2, 3, 16, 16)
    asked = [([1, *PICTURE, 2], [[3, 4, 5], [6], [7, 8]]), ([*PICTURE, 9], [[4, 257]])]

    def raw(texts, images):
        rows, segments = zip(*[pack_unread(prompt, answers, 0) for prompt, answers in texts])
        batch = collate(rows, 257, 16, None, images, segments=segments)
        return model.raw(batch.idx, batch.segments, images)

    alone = [raw([(prompt, [a])], images[b:b + 1])
             for b, (prompt, answers) in enumerate(asked) for a in answers]
    torch.testing.assert_close(raw(asked, images), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_fresh_reward_head_is_drawn_as_published():
    """Catches another scale: standard deviation 1 / sqrt(C + 1), no bias."""
    from minivlm.gpt import GPTConfig
    from minivlm.vlm import VLM, VLMConfig

    torch.manual_seed(0)
    gpt = GPTConfig(vocab_size=300, block_size=16, n_layer=1, n_head=4, n_embd=2048)
    head = RewardModel(VLM(VLMConfig(image_id=258, gpt=gpt))).head
    assert head.weight.std().item() == pytest.approx(2049 ** -0.5, rel=0.06)
    assert head.bias.item() == 0


def test_normalized_scores_have_mean_0_and_deviation_1_also_the_second_time(vlm):
    """Catches a normalization that forgets the one before, or is not kept in the checkpoint."""
    model, images = RewardModel(vlm).eval(), torch.randn(3, 3, 16, 16)
    raw = model(IDX, SEGMENTS, images)
    for _ in range(2):
        model.normalize(model.raw(IDX, SEGMENTS, images))
        seen = model(IDX, SEGMENTS, images)
        assert abs(seen.mean().item()) < 1e-5 and seen.std().item() == pytest.approx(1, abs=1e-5)
    assert seen.argsort().tolist() == raw.argsort().tolist()
    assert {"mean", "std"} <= set(model.state_dict())
    for bad in (torch.ones(4), torch.tensor([1.0]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="cannot be scaled to one of 1"):
            model.normalize(bad)
    torch.testing.assert_close(model(IDX, SEGMENTS, images), seen)


def test_values_begin_at_0_follow_the_reward_models_eyes_and_never_look_ahead(vlm):
    """Catches a value that knows the next token, and weights shared with the reward model."""
    reward, images = RewardModel(vlm), torch.randn(3, 3, 16, 16)
    model = ValueModel.from_reward_model(reward).eval()
    assert model(IDX, images).shape == IDX.shape and not model(IDX, images).any()
    for a, b in zip(model.vlm.parameters(), vlm.parameters()):
        assert (a == b).all() and a is not b
    torch.nn.init.normal_(model.head.weight)
    before, other = model(IDX, images), IDX.clone()
    other[1, 6] = 99
    changed = (model(other, images) - before).abs() > 1e-5
    assert not changed[[0, 2]].any() and changed[1].tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("share", [True, False])
def test_a_value_model_shares_the_reward_models_weights_if_asked_to(vlm, share):
    """Catches weights that are copied and should be shared, and a value model that shares the
    weights that it trains.
    """
    reward = RewardModel(vlm)
    value = ValueModel.from_reward_model(reward, share)
    assert value.vlm is not reward.vlm
    for a, b in zip(value.vlm.parameters(), reward.vlm.parameters(), strict=True):
        assert (a is b) == share and torch.equal(a, b)
