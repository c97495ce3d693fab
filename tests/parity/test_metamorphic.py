"""What must change with the input, and what must not; no other implementation is needed.

What a single module promises alone stands in its own test file: permuted batches, inert pads, ln 2
and ratio 1 of a policy that is its reference, frozen parts.
"""

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minivlm.captioner import hard_negatives
from minivlm.conversation import pack, pack_unread
from minivlm.gpt import GPT
from minivlm.heads import ValueModel
from minivlm.loading.batches import collate
from minivlm.loading.models import reward_model_from, vlm_from
from minivlm.lora import adapters, add_lora, merged
from minivlm.losses import dpo_loss, kl_estimate, sequence_logprobs, token_logprobs
from minivlm.rl import gae, kl_rewards, whiten
from minivlm.running.checkpoint import load
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLM, VLMConfig


def cases(n: int = 30) -> Iterator[random.Random]:
    """A generator of sizes for each case, torch seeded alike."""
    for seed in range(n):
        torch.manual_seed(seed)
        yield random.Random(seed)


# --- rewards and preferences ---


def drawn_rewards(rng) -> tuple[Tensor, ...]:
    """Scores (B,), KL estimates, values and mask (B, T), in float64."""
    B, T = rng.randint(3, 8), rng.randint(3, 12)
    lengths = torch.randint(1, T + 1, (B, 1))
    lengths[0] = T
    mask = torch.arange(T) < lengths
    kl = kl_estimate(*torch.randn(2, B, T, dtype=torch.float64))
    values = torch.randn(B, T, dtype=torch.float64)
    return torch.randn(B, dtype=torch.float64), kl, values, mask


def whitened(score: Tensor, kl: Tensor, values: Tensor, mask: Tensor, *of_gae: float) -> Tensor:
    """The advantages that PPO learns from."""
    return whiten(gae(kl_rewards(score, kl, mask, 0.1), values, mask, *of_gae)[0], mask)


def test_a_constant_added_to_every_score_changes_no_whitened_advantage():
    """Catches a mean over pads, and a score that reaches some tokens of an answer only.

    At gamma = lambda = 1 every token of an answer gets the constant; at others the last ones do.
    """
    for rng in cases(100):
        score, *others = drawn_rewards(rng)
        moved = whitened(score + 3, *others, 1.0, 1.0)
        torch.testing.assert_close(moved, whitened(score, *others, 1.0, 1.0))
        assert not torch.allclose(whitened(score + 3, *others, 1.0, 0.5),
                                  whitened(score, *others, 1.0, 0.5))


def test_rewards_and_values_in_another_unit_give_the_same_whitened_advantages():
    """Catches a constant hidden in the rewards, whatever gamma and lambda are."""
    for rng in cases(100):
        score, kl, values, mask = drawn_rewards(rng)
        of_gae = rng.uniform(0.5, 1), rng.uniform(0, 1)
        scaled = whitened(50 * score, 50 * kl, 50 * values, mask, *of_gae)
        want = whitened(score, kl, values, mask, *of_gae)
        torch.testing.assert_close(scaled, want, rtol=1e-6, atol=1e-6)  # 1e-8 beside the variance


@pytest.mark.parametrize("kind, e, slope", [
    ("sigmoid", 0.0, 1 / 2), ("sigmoid", 0.3, 0.2), ("robust", 0.3, 1 / 2 / 0.4),
    ("hinge", 0.0, 1.0), ("ipo", 0.0, 1.0), ("kto", 0.0, 1 / 8),
])
def test_at_a_small_beta_dpo_only_pulls_the_answers_apart(gpt: GPT, kind, e, slope):
    """Catches a weight of the pairs that does not fade with beta.

    What is left is -slope beta grad(chosen - rejected), the same for every pair, whatever the
    reference says; ipo's is -2 h + 1 / beta, so -1 / beta. A large beta weighs the pairs.
    """
    idx = torch.randint(256, (8, 9))
    logp = token_logprobs(gpt(idx[:, :-1]), idx[:, 1:])
    chosen, rejected = sequence_logprobs(logp, torch.ones_like(logp, dtype=torch.bool)).chunk(2)
    ref_chosen, ref_rejected = chosen.detach() + 2 * torch.randn(2, 4)

    def pull(loss: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss, list(gpt.parameters()), retain_graph=True)
        return torch.cat([g.flatten() for g in grads])

    apart = -slope * pull((chosen - rejected).sum())
    for beta, near in ((1e-5, True), (3.0, False)):
        loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, kind, e).sum()
        ours = pull(loss) * (beta if kind == "ipo" else 1 / beta)
        assert (float((ours - apart).norm() / apart.norm()) < 1e-3) == near


# --- what was trained ---


@pytest.fixture(scope="module")
def questions(runs: Path) -> tuple[Tensor, Tensor, Tensor, Tokenizer]:
    """Three dialogues up to the question, padded: ids, lengths, pictures; and their tokenizer."""
    tokenizer = Tokenizer.from_text(load(runs / "sft", ("sft",))["tokenizer"])
    config = VLMConfig.from_dict(load(runs / "sft", ("sft",))["configs"]["model"])
    user, assistant = tokenizer.special["<|user|>"], tokenizer.special["<|assistant|>"]
    rows = [[user, *[tokenizer.image] * config.vit.n_tokens, *tokenizer.encode(text), assistant]
            for text in ("What is this?", "Why?", "Which color is it?")]
    idx = torch.full((3, max(map(len, rows))), tokenizer.pad)
    for b, row in enumerate(rows):
        idx[b, :len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    side, generator = config.vit.image_size, torch.Generator().manual_seed(0)
    return idx, lengths, torch.randn(3, 3, side, side, generator=generator), tokenizer


@pytest.mark.parametrize("stage", ["align", "sft", "ppo", "dpo", "caption"])
def test_another_picture_changes_the_answers_distribution(runs, questions, stage):
    """Catches a stage that unlearns to look, or whose checkpoint has lost projector or ViT."""
    idx, lengths, images, _ = questions
    vlm, rows = vlm_from(load(runs / stage, (stage,))).eval(), torch.arange(3)
    with torch.no_grad():
        own, others = (vlm(idx, pictures)[rows, lengths - 1].softmax(-1)
                       for pictures in (images, images.roll(1, 0)))
    assert ((own - others).abs().sum(1) / 2 > 1e-3).all()            # total variation


def test_dialogues_in_another_order_have_their_own_scores_and_values(runs, questions):
    """Catches a picture given to another row, and a score that depends on the neighbors' length."""
    idx, lengths, images, _ = questions
    state, order = load(runs / "reward", ("reward",)), torch.tensor([2, 0, 1])
    judge = reward_model_from(state).eval()
    place = lengths[:, None] - torch.arange(idx.shape[1])  # counted from behind: the last one is 1
    of = torch.where(place < 1, -1, (place < 4).long())  # as if the last two were an answer
    with torch.no_grad():
        score = judge(idx, of, images)
        assert all(abs(float(a - b)) > 1e-4 for a, b in pairwise(score))
        torch.testing.assert_close(judge(idx[order], of[order], images[order]), score[order])
        alone = [judge(idx[b:b + 1, :n], of[b:b + 1, :n], images[b:b + 1])
                 for b, n in enumerate(lengths.tolist())]
        torch.testing.assert_close(torch.cat(alone), score, rtol=1e-4, atol=1e-5)
        critic = ValueModel.from_reward_model(judge).eval()
        nn.init.normal_(critic.head.weight)
        torch.testing.assert_close(critic(idx[order], images[order]), critic(idx, images)[order])


def test_swapping_a_pairs_answers_flips_the_sign_of_the_reward_models_logit(runs, questions):
    """Catches a score that depends on the answer's place in its packed row."""
    idx, lengths, images, tokenizer = questions
    judge = reward_model_from(load(runs / "reward", ("reward",))).eval()
    prompt, block_size = idx[0, :lengths[0]].tolist(), judge.vlm.gpt.config.block_size
    for rng in cases():
        answers = [[rng.randrange(200) for _ in range(rng.randint(1, 6))] + [tokenizer.end]
                   for _ in range(2)]
        logits = []
        for pair in (answers, answers[::-1]):
            row, of = pack_unread(prompt, pair, tokenizer.end)
            batch = collate([row], tokenizer.pad, block_size, segments=[of])
            with torch.no_grad():
                first, second = judge.raw(batch.idx, batch.segments, images[:1])
            logits.append(float(first - second))
        assert logits[0] == pytest.approx(-logits[1], abs=1e-5) and abs(logits[0]) > 1e-6


# --- rows that share a batch or a context ---


def test_packed_answers_leak_nothing_into_each_other_forward_or_back(gpt: GPT):
    """Catches an answer that moves another's logits, or learns from another's loss, to the bit."""
    for rng in cases():
        prompt = [rng.randrange(256) for _ in range(rng.randint(1, 5))]
        answers = [[rng.randrange(256) for _ in range(rng.randint(1, 6))]
                   for _ in range(rng.randint(2, 4))]
        (row, _), of = pack(prompt, answers)
        idx, segments, k = torch.tensor([row]), torch.tensor([of]), rng.randint(1, len(answers))
        emb = gpt.wte(idx).detach().requires_grad_()
        logits = gpt(emb=emb, segments=segments)
        own = segments[0] == k
        other = torch.where(own[:, None], torch.randn_like(emb), emb)
        changed = (gpt(emb=other, segments=segments) != logits).any(-1)[0]
        assert not changed[~own].any() and changed[own].all()
        grad, = torch.autograd.grad(logits[0, own].square().sum(), emb)
        sees = own | (segments[0] == 0)
        assert not grad[0, ~sees].any() and grad[0, sees].any(-1).all()


def test_merged_adapters_give_what_they_gave_beside_their_maps(vlm_config):
    """Catches a scale lost in merging, B A the wrong way round, a map of another shape."""
    for rng in cases():
        model, plain = VLM(vlm_config).eval(), VLM(vlm_config).eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        patterns = rng.sample(("gpt.*qkv", "gpt.*proj", "*mlp*", "projector*", "vit*"), 2)
        add_lora(model, ",".join(patterns), rng.randint(1, 6), rng.uniform(0.5, 20))
        idx = torch.cat([torch.full((2, 4), vlm_config.image_id), torch.randint(256, (2, 5))], 1)
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            plain.load_state_dict(merged(model.state_dict()))
            assert all(torch.equal(plain.state_dict()[k], v) for k, v in before.items())
            fresh = model(idx, images)
            for _, m in adapters(model):
                m.lora_B.normal_(0, 0.1)
            plain.load_state_dict(merged(model.state_dict()))
            got = model(idx, images)
            torch.testing.assert_close(plain(idx, images), got, rtol=1e-4, atol=1e-5)
            assert (got - fresh).abs().max() > 1e-3


def test_negatives_are_drawn_as_often_as_their_weights_say():
    """Catches a softmax over pictures, no 1e-4, weights of an equal text that are kept.

    10,000 draws a case from one row of similarities, repeated. Pearson's sum over all cases, of
    cells with five draws expected and more, is normal by then: within 4 sigma of its mean.
    """
    total = n_free = 0
    for rng in cases():
        B, scale = rng.randint(3, 50), rng.choice((1, 10, 100))
        similarity = scale * torch.rand(B)
        similarity[0] = scale  # its own, which at 100 leaves little but the 1e-4 to others
        same = torch.rand(B) < 0.1
        same[0], same[1] = True, False
        weights = (similarity.softmax(0) + 1e-4).masked_fill(same, 0)
        n_calls = math.ceil(10_000 / B)
        drawn = torch.cat([hard_negatives(similarity.expand(B, B), same.expand(B, B))
                           for _ in range(n_calls)])
        expected = len(drawn) * weights / weights.sum()
        counts = drawn.bincount(minlength=B)
        assert not counts[same].any()
        kept = expected >= 5
        total += float(((counts - expected).square() / expected)[kept].sum())
        n_free += int(kept.sum()) - 1
    assert abs(total - n_free) < 4 * math.sqrt(2 * n_free)
