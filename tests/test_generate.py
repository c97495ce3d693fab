"""Generation against the plainest loop there is: read everything again, one row alone, no cache."""

import pytest
import torch
from torch import Tensor, nn

from minivlm.generate import filter_logits, generate, pick, stream

N, IMAGE = 4, 258  # image tokens a picture, and the placeholder's id, of conftest's tiny models
PICTURE = [IMAGE] * N
PROMPTS = [[1, *PICTURE, 2, 3], [4, 5], [*PICTURE, 7, *PICTURE, 8, 9], [6]]  # 1, 0, 2 and 0 pictures
OF_ROW = [slice(0, 1), None, slice(1, 3), None]
NEVER = -1  # a stop id that no model writes


@pytest.fixture
def talker(vlm) -> nn.Module:
    """A stirred VLM that scores the placeholder far below all other tokens."""
    with torch.no_grad():
        vlm.gpt.norm.bias += 0.25
        vlm.gpt.wte.weight[IMAGE] = -1.0
        vlm.gpt.wpe.weight *= 2.0  # so that a greedy text does not repeat one token
    return vlm


@pytest.fixture
def images() -> Tensor:
    """The three pictures of PROMPTS."""
    return torch.randn(3, 3, 16, 16)


def by_hand(model: nn.Module, pictures: Tensor | None, prompt: list[int], n: int) -> list[int]:
    """Greedy decoding of one row as anybody would write it first."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]), pictures)[0, -1].argmax()))
    return ids[len(prompt):]


def alone(model: nn.Module, images: Tensor, **options) -> list[list[int]]:
    """Every row of PROMPTS in a batch of its own."""
    rows = []
    for prompt, own in zip(PROMPTS, OF_ROW):
        rows += generate(model, None if own is None else images[own], [prompt], **options)
    return rows


# --- batches and cache ---


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_rows_of_different_length_equal_the_loop_by_hand(talker, images, use_cache: bool):
    """Catches: a token written at another row's length, a pad's key seen, logits of the wrong position."""
    got = generate(talker, images, PROMPTS, max_new_tokens=12, stop=NEVER, use_cache=use_cache)
    want = [by_hand(talker, None if own is None else images[own], prompt, 12)
            for prompt, own in zip(PROMPTS, OF_ROW)]
    assert got == want
    assert len({tuple(row) for row in got}) == 4 and max(len(set(row)) for row in got) > 2  # no constant text


def test_sampling_with_a_cache_equals_sampling_without(talker, images):
    """Catches: a cache that changes the distribution, or draws in another order."""
    options = {"max_new_tokens": 12, "stop": NEVER}
    cached, uncached = (
        generate(talker, images, PROMPTS, **options, temperature=1.0, top_k=40, top_p=0.9,
                 generator=torch.Generator().manual_seed(5), use_cache=use_cache)
        for use_cache in (True, False))
    assert cached == uncached
    assert cached != generate(talker, images, PROMPTS, **options)


def test_a_row_does_not_depend_on_who_shares_its_batch(talker, images):
    """Catches: left padding by another name, pictures given to the wrong row."""
    options = {"max_new_tokens": 10, "stop": NEVER}
    assert generate(talker, images, PROMPTS, **options) == alone(talker, images, **options)


def test_another_picture_changes_the_answer(talker, images):
    """Catches: a cached prompt that was read without its picture."""
    before = generate(talker, images, PROMPTS, max_new_tokens=10, stop=NEVER)
    changed = 0
    for _ in range(5):
        other = torch.cat([images[:1], torch.randn(2, 3, 16, 16)])
        after = generate(talker, other, PROMPTS, max_new_tokens=10, stop=NEVER)
        assert before[0] == after[0] and before[1] == after[1] and before[3] == after[3]
        changed += before[2] != after[2]
    assert changed  # five random pairs of pictures; greedy answers may agree by chance


def test_a_plain_gpt_generates_without_pictures(gpt):
    """Catches: a model that must be a VLM."""
    got = generate(gpt, None, [[1, 2, 3], [4]], max_new_tokens=6, stop=NEVER)
    for row, prompt in zip(got, ([1, 2, 3], [4])):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(gpt(torch.tensor([ids]))[0, -1].argmax()))
        assert row == ids[len(prompt):]


# --- where a row ends ---


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_stop_token_ends_its_row_and_the_others_go_on(talker, images, use_cache: bool):
    """Catches: one row that ends the batch, a stop token in the answer, text behind it."""
    free = generate(talker, images, PROMPTS, max_new_tokens=12, stop=NEVER)
    for stop in {token for row in free for token in row}:
        want = [row[:row.index(stop)] if stop in row else row for row in free]
        assert generate(talker, images, PROMPTS, max_new_tokens=12, stop=stop, use_cache=use_cache) == want


def test_a_stream_yields_the_stop_token_once_and_then_none(talker, images):
    """Catches: a chat that never learns that the answer ended; steps after the last row has."""
    free = generate(talker, images, PROMPTS, max_new_tokens=12, stop=NEVER)
    stop = free[0][2]
    steps = list(stream(talker, images, PROMPTS, max_new_tokens=12, stop=stop))
    for row, whole in zip(zip(*steps), free):
        n = whole.index(stop) + 1 if stop in whole else 12
        assert list(row) == (whole[:n] + [None] * 12)[:len(steps)]
    assert len(steps) == max(row.index(stop) + 1 if stop in row else 12 for row in free)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("lengths", [(30, 5, 31), (5, 5), (31,)])
def test_a_row_ends_where_the_context_is_full_and_no_sooner(gpt, lengths, use_cache: bool):
    """Catches: a crash at the last position, a short row cut by a long one, a token past the context.

    The context is 32: a prompt of 30 has room for 2 tokens, one of 5 for 27. The token at the last
    position is still written; what would follow it has no position.
    """
    prompts = [torch.randint(256, (n,)).tolist() for n in lengths]
    got = generate(gpt, None, prompts, max_new_tokens=40, stop=NEVER, use_cache=use_cache)
    assert [len(row) for row in got] == [32 - n for n in lengths]
    assert got == [generate(gpt, None, [p], max_new_tokens=40, stop=NEVER)[0] for p in prompts]


@pytest.mark.parametrize("n", [0, 1, 4])
def test_no_row_has_more_than_max_new_tokens(gpt, n: int):
    """Catches: an answer one token too long or short, also where only the longest row nears the end."""
    assert [len(row) for row in generate(gpt, None, [[1] * 28, [2]], max_new_tokens=n, stop=NEVER)] == [n, n]


# --- choosing ---


def definition(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[int]:
    """The ids that stay, by the words: sort, keep top_k and equals, then the fewest that reach top_p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if 0 < top_k < len(order):
        order = [i for i in order if logits[i] >= logits[order[top_k - 1]]]
    weights = torch.tensor([logits[i] / temperature for i in order], dtype=torch.float64).softmax(0).tolist()
    mass, kept = 0.0, []
    for i, p in zip(order, weights):
        kept.append(i)
        mass += p
        if mass >= top_p:
            break
    return sorted(kept)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 9, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_filter_keeps_what_the_definition_keeps(temperature: float, top_k: int, top_p: float):
    """Catches: the likeliest token dropped, one token too many, a scatter to the wrong ids, top-p before
    top-k, a temperature that multiplies."""
    logits = torch.randn(6, 9) * 2
    out = filter_logits(logits, temperature, top_k, top_p)
    for row, kept in zip(logits, out):
        ids = kept.isfinite().nonzero().flatten().tolist()
        assert ids == definition(row.tolist(), temperature, top_k, top_p)
        torch.testing.assert_close(kept[ids], row[ids] / temperature)
        assert (kept[~kept.isfinite()] == -torch.inf).all()


def test_top_p_by_hand():
    """Catches: a nucleus one token too small or too large.

    p = (0.5, 0.3, 0.2): 0.5 alone reaches 0.4; 0.6 needs 0.5 + 0.3; 0.9 needs all three.
    """
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log()
    for top_p, kept in ((0.4, [1]), (0.6, [0, 1]), (0.9, [0, 1, 2])):
        assert filter_logits(logits, 1.0, top_p=top_p)[0].isfinite().nonzero().flatten().tolist() == kept


def test_equals_of_the_kth_token_stay_too():
    """Catches: a choice among equals that depends on the sort."""
    assert filter_logits(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 1.0, top_k=2)[0].isfinite().tolist() == [
        True, True, True, False]


def test_the_likeliest_token_stays_even_at_top_p_zero():
    """Catches: an empty nucleus, which becomes nan in the softmax."""
    assert filter_logits(torch.tensor([[1.0, 3.0, 2.0]]), 1.0, top_p=0.0)[0].isfinite().tolist() == [
        False, True, False]


@pytest.mark.parametrize("temperature, share", [(1.0, 0.75), (0.5, 0.9)])
def test_draws_follow_the_distribution(temperature: float, share: float):
    """Catches: sampling from logits, or a temperature applied twice or not at all.

    By hand: odds of 3 to 1 are 0.75; at temperature 1/2 they are 9 to 1, 0.9.
    """
    logits = torch.tensor([[3.0, 1.0]]).log().expand(10_000, 2)
    drawn = pick(logits, temperature, 0, 1.0, torch.Generator().manual_seed(1))
    assert (drawn == 0).float().mean().item() == pytest.approx(share, abs=0.015)


def test_temperature_zero_and_top_k_one_are_greedy(talker, images):
    """Catches: greedy decoding that draws."""
    greedy = generate(talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, temperature=0.0)
    assert generate(talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, temperature=1.0, top_k=1) == greedy


def test_the_same_generator_seed_gives_the_same_text_and_spares_the_global_one(talker, images):
    """Catches: draws from the global generator, which training's dropout would disturb."""
    state, texts = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        texts.append(generate(talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, temperature=1.0,
                              top_k=50, generator=torch.Generator().manual_seed(seed)))
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_placeholder_is_never_written(vlm, images, use_cache: bool):
    """Catches: a picture's placeholder as an answer, which stands for no picture and cannot be read back."""
    with torch.no_grad():
        vlm.gpt.norm.bias += 0.5
        vlm.gpt.wte.weight[IMAGE] = 1.0  # now the likeliest token by far
    answers = generate(vlm, images, PROMPTS, max_new_tokens=4, stop=NEVER, use_cache=use_cache)
    assert [len(row) for row in answers] == [4] * 4 and IMAGE not in sum(answers, [])


# --- the model afterwards ---


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_came_in(talker, images, training: bool):
    """Catches: dropout off for the rest of training after a sample, or on while sampling."""
    model = talker.train(training)
    generate(model, images, PROMPTS, max_new_tokens=2, stop=NEVER)
    assert model.training is model.gpt.blocks[0].training is training


def test_dropout_is_off_while_generating(talker, images):
    """Catches: answers that change from call to call in the middle of training."""
    want = generate(talker.eval(), images, PROMPTS, max_new_tokens=6, stop=NEVER)
    for module in talker.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert generate(talker, images, PROMPTS, max_new_tokens=6, stop=NEVER) == want


def test_a_stream_that_is_left_early_restores_the_mode_too(gpt):
    """Catches: a chat interrupted in mid-answer, after which training goes on without dropout."""
    gpt.train()
    steps = stream(gpt, None, [[1]], max_new_tokens=5, stop=NEVER)
    next(steps)
    steps.close()
    assert gpt.training


def test_generation_keeps_no_graph_and_leaves_gradients_on(gpt):
    """Catches: memory that grows with every token; gradients switched off for the reader of a stream."""
    seen = []
    gpt.head.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    for _ in stream(gpt, None, [[1]], max_new_tokens=3, stop=NEVER):
        assert torch.is_grad_enabled()
    assert seen and not any(seen)


# --- refusals ---


@pytest.mark.parametrize("prompts", [[], [[1], []]], ids=["none", "one empty"])
def test_a_missing_prompt_is_refused(gpt, prompts):
    """Catches: a row whose first token is read from a pad."""
    with pytest.raises(ValueError, match="every row needs a prompt of at least one token"):
        generate(gpt, None, prompts, max_new_tokens=2, stop=NEVER)


@pytest.mark.parametrize("n", [32, 40])
def test_a_prompt_that_leaves_no_room_is_refused(gpt, n: int):
    """Catches: a prompt cut in silence, or an empty answer."""
    with pytest.raises(ValueError, match=f"prompt has {n} tokens, the context holds 32 with the answer"):
        generate(gpt, None, [[1], [1] * n], max_new_tokens=2, stop=NEVER)


def test_pictures_that_do_not_fit_the_prompts_are_refused(talker, images):
    """Catches: generation that goes round the count of the splice."""
    with pytest.raises(ValueError, match="image placeholders, but 2 pictures"):
        generate(talker, images[:2], PROMPTS, max_new_tokens=2, stop=NEVER)
