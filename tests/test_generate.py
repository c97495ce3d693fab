"""Generation against the plainest loop there is: read everything again, one row alone, no cache."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from minivlm.cache import Decoder
from minivlm.generate import (
    answer_logprobs, beam_search, filter_logits, generate, penalize, pick, stream,
)
from minivlm.gpt import GPT, GPTConfig

N, IMAGE = 4, 258  # image tokens a picture, and the placeholder's id, of conftest's tiny models
PICTURE = [IMAGE] * N
PROMPTS = [[1, *PICTURE, 2, 3], [4, 5], [*PICTURE, 7, *PICTURE, 8, 9], [6]]  # 1, 0, 2, 0 pictures
OF_ROW = [slice(0, 1), None, slice(1, 3), None]
NEVER = -1  # a stop id that no model writes


@pytest.fixture
def talker(vlm) -> nn.Module:
    """A stirred VLM that scores the placeholder far below all other tokens."""
    with torch.no_grad():
        vlm.gpt.norm.bias += 0.25
        vlm.gpt.wte.weight *= 2  # so that a greedy text does not repeat one token
        vlm.gpt.wte.weight[IMAGE] = -1.0
        for block in vlm.gpt.blocks:
            block.attn.proj.weight *= 4.0
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


def tensors_read(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A list that gets B and T of whatever the model or its decoder reads from now on."""
    read = []
    for kind in (type(model), Decoder):
        name = "forward" if issubclass(kind, nn.Module) else "__call__"

        def spy(self, idx, *args, whole=getattr(kind, name), **options):
            read.append((len(idx), idx.shape[1] if idx.ndim == 2 else 1))
            return whole(self, idx, *args, **options)

        monkeypatch.setattr(kind, name, spy)
    return read


def alone(model: nn.Module, images: Tensor, **options) -> list[list[int]]:
    """Every row of PROMPTS in a batch of its own."""
    rows = []
    for prompt, own in zip(PROMPTS, OF_ROW):
        rows += generate(model, None if own is None else images[own], [prompt], **options)
    return rows


# --- batches and cache ---


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_rows_of_different_length_equal_the_loop_by_hand(talker, images, use_cache: bool):
    """Catches: a token at another row's length, a pad's key seen, logits of the wrong position."""
    got = generate(talker, images, PROMPTS, max_new_tokens=12, stop=NEVER, use_cache=use_cache)
    want = [by_hand(talker, None if own is None else images[own], prompt, 12)
            for prompt, own in zip(PROMPTS, OF_ROW)]
    assert got == want
    # no constant text
    assert len({tuple(row) for row in got}) == 4 and max(len(set(row)) for row in got) > 2


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


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prefix_lm_sees_its_prompt_both_ways_and_its_answer_one_way(
    talker, images, use_cache: bool
):
    """Catches a prompt read one way once the answer has begun, an answer that sees what follows."""
    talker.config = replace(talker.config, prefix_lm=True)
    ids = list(PROMPTS[0])
    prefix = torch.tensor([len(ids)])
    for _ in range(8):
        logits = talker(torch.tensor([ids]), images[:1], prefix=prefix)
        ids.append(int(logits[0, -1].argmax()))
    got = generate(talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, use_cache=use_cache)
    assert got[0] == ids[len(PROMPTS[0]):]
    assert got[0] != by_hand(talker, images[:1], PROMPTS[0], 8)  # as a causal model would say
    copies = generate(talker, images, PROMPTS, max_new_tokens=8, stop=NEVER,
                      use_cache=use_cache, n_copies=2)
    # rows that are copied keep their prefix
    assert copies == [answer for answer in got for _ in range(2)]
    [[logp], *_] = answer_logprobs(talker, images[:1], PROMPTS[:1], [got[0][:3]], pad=0)
    logits = talker(torch.tensor([ids]), images[:1], prefix=prefix)[0].detach().log_softmax(-1)
    want = sum(float(logits[len(PROMPTS[0]) - 1 + i, got[0][i]]) for i in range(3))
    assert float(logp) == pytest.approx(want, abs=1e-4)


def test_every_token_is_read_once_unless_the_cache_is_off(gpt, monkeypatch):
    """Catches a cache that is off by default or cannot be, and a last token read in vain."""
    read = tensors_read(gpt, monkeypatch)
    list(stream(gpt, None, [[1, 2, 3]], max_new_tokens=4, stop=NEVER))
    assert read == [(1, 3), (1, 1), (1, 1), (1, 1)]
    read.clear()
    beam_search(gpt, None, [[1, 2, 3]], n_beams=2, max_new_tokens=4, stop=NEVER)
    assert read == [(1, 3), (2, 1), (2, 1), (2, 1)]
    read.clear()
    list(stream(gpt, None, [[1, 2, 3]], max_new_tokens=4, stop=NEVER, use_cache=False))
    assert read == [(1, 3), (1, 4), (1, 5), (1, 6)]


def test_everything_is_made_where_the_model_is(talker, small_gpt, images):
    """Catches a tensor on the default device: here "meta", which nothing can be read from."""
    prompts, options = PROMPTS[::3], {"max_new_tokens": 6, "repetition_penalty": 1.5}

    def said() -> list:
        out = [generate(talker, images[:1], prompts, use_cache=use_cache, n_copies=2, stop=stop,
                        **options) for use_cache in (True, False)]
        out.append(beam_search(small_gpt, None, [[1], [2]], n_beams=2, max_new_tokens=3, stop=0))
        out.append(answer_logprobs(talker, images[:1], PROMPTS[:1], [[3, 4], [0]], pad=0).tolist())
        return out

    talker.config = replace(talker.config, prefix_lm=True)
    one, other = generate(talker, images[:1], prompts, stop=NEVER, **options)
    stop = next(t for t in one if t not in other)  # half of the rows are dropped
    want = said()
    with torch.device("meta"):
        assert said() == want


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
        assert generate(
            talker, images, PROMPTS, max_new_tokens=12, stop=stop, use_cache=use_cache
        ) == want


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_that_have_stopped_are_no_longer_read(talker, images, use_cache, monkeypatch):
    """Catches: a batch that costs as much as its longest answer for every row."""
    free = generate(talker, images, PROMPTS, max_new_tokens=12, stop=NEVER)
    read = tensors_read(talker, monkeypatch)
    for stop in {token for row in free for token in row}:
        read.clear()
        ends = sorted(row.index(stop) + 1 if stop in row else 12 for row in free)
        generate(talker, images, PROMPTS, max_new_tokens=12, stop=stop, use_cache=use_cache)
        # before each of its tokens a row is read; half of them at most are read in vain
        going = [sum(end > step for end in ends) for step in range(max(ends))]
        assert len(read) == max(ends) and all(n < 2 * g for (n, _), g in zip(read, going))


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
    """Catches: a crash at the last place, a short row cut by a long one, a token past the context.

    The context is 32: a prompt of 30 has room for 2 tokens, one of 5 for 27. The token at the last
    position is still written; what would follow it has no position.
    """
    prompts = [torch.randint(256, (n,)).tolist() for n in lengths]
    got = generate(gpt, None, prompts, max_new_tokens=40, stop=NEVER, use_cache=use_cache)
    assert [len(row) for row in got] == [32 - n for n in lengths]
    assert got == [generate(gpt, None, [p], max_new_tokens=40, stop=NEVER)[0] for p in prompts]
    steps = stream(gpt, None, prompts, max_new_tokens=40, stop=NEVER, use_cache=use_cache)
    assert len(list(steps)) == 32 - min(lengths)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_no_row_has_more_than_max_new_tokens(gpt, n: int):
    """Catches: answers one token too long or short, also if only the longest row nears the end."""
    assert [
        len(row) for row in generate(gpt, None, [[1] * 28, [2]], max_new_tokens=n, stop=NEVER)
    ] == [n, n]


# --- choosing ---


def definition(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[int]:
    """The ids that stay, in words: sort, keep top_k and equals, then the fewest to reach top_p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if 0 < top_k < len(order):
        order = [i for i in order if logits[i] >= logits[order[top_k - 1]]]
    weights = torch.tensor(
        [logits[i] / temperature for i in order], dtype=torch.float64
    ).softmax(0).tolist()
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
    """Catches: the likeliest token dropped, one token too many, a scatter to the wrong ids, top-p
    before top-k, a temperature that multiplies.
    """
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
        assert (
            filter_logits(logits, 1.0, top_p=top_p)[0].isfinite().nonzero().flatten().tolist()
            == kept
        )
    half = filter_logits(torch.zeros(1, 2), 1.0, top_p=0.5)  # one of two equals is just enough
    assert half.isfinite().sum() == 1


def test_without_top_p_nothing_is_dropped():
    """Catches a sum of probabilities that is rounded to 1 before the last token has its turn."""
    logits = torch.tensor([[0.0, -20.0, -40.0]])
    assert torch.equal(filter_logits(logits, 1.0), logits)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_filter_needs_a_temperature(temperature: float):
    """Catches a temperature of 0, one that prefers unlikely tokens, and one that is NaN."""
    with pytest.raises(ValueError, match=f"^temperature {temperature} is not above 0; greedy "
                                         "decoding needs no filter$"):
        filter_logits(torch.zeros(1, 2), temperature)


def test_equals_of_the_kth_token_stay_too():
    """Catches: a choice among equals that depends on the sort."""
    assert filter_logits(
        torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 1.0, top_k=2
    )[0].isfinite().tolist() == [True, True, True, False]


def test_the_likeliest_token_stays_even_at_top_p_zero():
    """Catches: an empty nucleus, which becomes nan in the softmax."""
    assert filter_logits(
        torch.tensor([[1.0, 3.0, 2.0]]), 1.0, top_p=0.0
    )[0].isfinite().tolist() == [False, True, False]


@pytest.mark.parametrize("temperature, share", [(1.0, 0.75), (0.5, 0.9)])
def test_draws_follow_the_distribution(temperature: float, share: float):
    """Catches: sampling from logits, or a temperature applied twice or not at all.

    By hand: odds of 3 to 1 are 0.75; at temperature 1/2 they are 9 to 1, 0.9.
    """
    logits = torch.tensor([[3.0, 1.0]]).log().expand(10_000, 2)
    draws = torch.rand(10_000, generator=torch.Generator().manual_seed(1))
    drawn = pick(logits, temperature, draws=draws)
    assert (drawn == 0).float().mean().item() == pytest.approx(share, abs=0.015)
    # the nucleus holds one token
    assert (pick(logits, temperature, top_p=0.7, draws=draws) == 0).all()


def test_a_draw_takes_the_token_where_the_probabilities_reach_it():
    """Catches: a token of probability 0 for draws near 0 or 1; an index behind the last token.

    p = (0, 0.25, 0, 0.75, 0): below 0.25 the second token, from there on the fourth.
    """
    logits = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).log().expand(5, 5)
    draws = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2 ** -24])
    assert pick(logits, 1.0, draws=draws).tolist() == [1, 1, 3, 3, 3]
    many = torch.randn(500, 50_000)  # sums of many small numbers are not exactly 1
    drawn = pick(many, 1.0, draws=torch.full((500,), 1 - 2 ** -24))
    assert (drawn < 50_000).all()


def test_a_drawn_row_does_not_depend_on_who_shares_its_batch(talker, images):
    """Catches: random numbers that belong to a place in the batch, or to a step of all rows."""
    draws = torch.rand(4, 10, generator=torch.Generator().manual_seed(3))
    options = {"max_new_tokens": 10, "temperature": 1.5}
    free = generate(talker, images, PROMPTS, draws=draws, stop=NEVER, **options)
    for stop in {token for row in free for token in row[:5]}:  # some rows end, others move up
        options["stop"] = stop
        together = generate(talker, images, PROMPTS, draws=draws, **options)
        for b, (prompt, own) in enumerate(zip(PROMPTS, OF_ROW)):
            pictures = None if own is None else images[own]
            assert generate(talker, pictures, [prompt], draws=draws[b:b + 1], **options) == [
                together[b]]
    seeded = torch.Generator().manual_seed(3)
    assert generate(talker, images, PROMPTS, generator=seeded, **options) == together


def test_temperature_zero_and_top_k_one_are_greedy(talker, images):
    """Catches: greedy decoding that draws."""
    greedy = generate(talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, temperature=0.0)
    assert generate(
        talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, temperature=1.0, top_k=1
    ) == greedy


def test_the_same_generator_seed_gives_the_same_text_and_spares_the_global_one(talker, images):
    """Catches: draws from the global generator, which training's dropout would disturb."""
    state, texts = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        texts.append(generate(
            talker, images, PROMPTS, max_new_tokens=8, stop=NEVER, temperature=1.0,
            top_k=50, generator=torch.Generator().manual_seed(seed),
        ))
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_placeholder_is_never_written(vlm, images, use_cache: bool):
    """Catches: a placeholder as an answer, which stands for no picture and cannot be read back."""
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
    """Catches: memory that grows with every token; gradients switched off for a stream's reader."""
    seen = []
    gpt.head.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    for _ in stream(gpt, None, [[1]], max_new_tokens=3, stop=NEVER):
        assert torch.is_grad_enabled()
    assert seen and not any(seen)


# --- refusals ---


@pytest.mark.parametrize("prompts", [[], [[1], []]], ids=["none", "one empty"])
def test_a_missing_prompt_is_refused(gpt, prompts):
    """Catches: a row whose first token is read from a pad."""
    with pytest.raises(ValueError, match="^every row needs a prompt of at least one token$"):
        generate(gpt, None, prompts, max_new_tokens=2, stop=NEVER)


@pytest.mark.parametrize("n", [32, 40])
def test_a_prompt_that_leaves_no_room_is_refused(gpt, n: int):
    """Catches: a prompt cut in silence, or an empty answer."""
    with pytest.raises(
        ValueError,
        match=f"^prompt has {n} tokens, the context holds 32 with the answer; shorten it$",
    ):
        generate(gpt, None, [[1], [1] * n], max_new_tokens=2, stop=NEVER)


def test_pictures_that_do_not_fit_the_prompts_are_refused(talker, images):
    """Catches: generation that goes round the count of the splice."""
    with pytest.raises(ValueError, match="image placeholders, but 2 pictures"):
        generate(talker, images[:2], PROMPTS, max_new_tokens=2, stop=NEVER)


# --- beam search ---


@torch.no_grad()
def every_text(
    model: nn.Module, picture: Tensor | None, prompt: list[int], n: int, stop: int, penalty: float
):
    """The best of all texts of at most n tokens, by scoring each: (ids without stop, score)."""
    V, best = model.config.vocab_size, ([], -float("inf"))
    for length in range(1, n + 1):
        for text in itertools.product(range(V), repeat=length):
            if stop in text[:-1] or (length < n and text[-1] != stop):
                continue
            logp = model(torch.tensor([[*prompt, *text]]))[0].log_softmax(-1)
            total = sum(float(logp[len(prompt) - 1 + i, t]) for i, t in enumerate(text))
            score = total / length ** penalty
            if score > best[1]:
                best = [t for t in text if t != stop], score
    return best


@pytest.fixture
def small_gpt() -> GPT:
    """A stirred GPT of five tokens."""
    gpt = GPT(GPTConfig(vocab_size=5, block_size=8, n_layer=2, n_head=2, n_embd=16)).eval()
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.5)
    return gpt


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_texts(
    small_gpt, penalty: float, use_cache: bool
):
    """Catches: another beam's cache, a score without the stop, texts finished twice or never."""
    prompts = [[1], [2, 3, 1], [4, 4]]
    got = beam_search(
        small_gpt, None, prompts, n_beams=125, max_new_tokens=3, stop=0, length_penalty=penalty,
        use_cache=use_cache,
    )
    for prompt, (ids, score) in zip(prompts, got):
        want, best = every_text(small_gpt, None, prompt, 3, 0, penalty)
        assert ids == want and score == pytest.approx(best, abs=1e-4)


def plain_beams(
    model: nn.Module, prompt: list[int], K: int, steps: int, stop: int, penalty: float
) -> tuple[list[int], float]:
    """Beam search of one prompt as `beam_search` describes it: lists, no cache, no batch."""
    going, finished = [(0.0, [])], []
    for n in range(1, steps + 1):
        logits = model(torch.tensor([prompt + ids for _, ids in going]))[:, -1]
        found = [(total + x, ids + [t])
                 for (total, ids), logp in zip(going, logits.log_softmax(-1).tolist())
                 for t, x in enumerate(logp)]
        found.sort(key=lambda text: -text[0])
        last = n == steps or len(prompt) + n == model.config.block_size
        ends = [text for text in found[:2 * K] if last or text[1][-1] == stop]
        finished += [(total / n ** penalty, [t for t in ids if t != stop])
                     for total, ids in ends if (total, ids) in found[:K]]
        finished = sorted(finished, key=lambda text: -text[0])[:K]
        going = [text for text in found[:2 * K] if text not in ends][:K]
        if last or len(finished) == K and going[0][0] / n ** penalty <= finished[-1][0]:
            break
    return finished[0][1], finished[0][0]


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beam_search_equals_the_plain_loop(K: int, penalty: float):
    """Catches a row that goes on when it is done, or is done with the others; texts that end behind
    the first K; fewer beams than asked for; a full context that a neighbor's room reopens."""
    prompts, seen = [[1], [2, 3, 1], [4] * 6], set()
    model = GPT(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=2, n_embd=8)).eval()
    for seed in range(6):
        torch.manual_seed(seed)
        for p in model.parameters():
            torch.nn.init.normal_(p, 0, 0.5)
        got = beam_search(model, None, prompts, n_beams=K, max_new_tokens=6, stop=0,
                          length_penalty=penalty)
        for prompt, (ids, score) in zip(prompts, got):
            want, best = plain_beams(model, prompt, K, 6, 0, penalty)
            assert ids == want and score == pytest.approx(best, abs=1e-4)
            seen.add(len(ids))
        if penalty == 1:  # the default
            assert got == beam_search(model, None, prompts, n_beams=K, max_new_tokens=6, stop=0)
    assert len(seen) > 2


def test_a_beam_wider_than_the_vocabulary_never_reads_the_placeholder(talker):
    """Catches continuations of no probability that go on: of 2 tokens every text is tried."""
    prompt, stop, V = [4, 5], 11, talker.gpt.config.vocab_size
    words = [t for t in range(V) if t != IMAGE]
    with torch.no_grad():
        rows = torch.tensor([[*prompt, t] for t in words])
        logits = talker(rows)
    logits[..., IMAGE] = -torch.inf
    logp = logits.log_softmax(-1)                                    # (V - 1, 3, V)
    scores = {(t,): float(logp[0, 1, t]) for t in [stop]}
    for row, a in zip(logp, words):
        if a != stop:
            b = int(row[2].argmax())
            scores[(a, b)] = (float(row[1, a]) + float(row[2, b])) / 2
    best = max(scores, key=scores.get)
    [(ids, score)] = beam_search(talker, None, [prompt], n_beams=2 * V, max_new_tokens=2, stop=stop)
    assert ids == [t for t in best if t != stop]
    assert score == pytest.approx(scores[best], abs=1e-4)


def test_beams_with_pictures_do_not_depend_on_who_shares_the_batch(talker, images):
    """Catches: a beam that sees another row's picture, a row cut short as its neighbor ends."""
    options = {"n_beams": 3, "max_new_tokens": 6, "stop": 11}
    for use_cache in (True, False):
        together = beam_search(talker, images, PROMPTS, use_cache=use_cache, **options)
        for i, (prompt, own) in enumerate(zip(PROMPTS, OF_ROW)):
            pictures = None if own is None else images[own]
            [(ids, score)] = beam_search(talker, pictures, [prompt], **options)
            assert together[i][0] == ids and together[i][1] == pytest.approx(score, abs=1e-4)


def test_a_wider_beam_finds_no_worse_a_text(small_gpt):
    """Catches: scores compared with the wrong sign. (Not a law of beam search; true here.)"""
    scores = [
        beam_search(small_gpt, None, [[1, 2]], n_beams=k, max_new_tokens=5, stop=0)[0][1]
        for k in (1, 3, 125)
    ]
    assert all(b >= a - 1e-5 for a, b in zip(scores, scores[1:]))


def test_a_beam_ends_where_the_context_is_full(small_gpt):
    """Catches: writing behind the context; the row of six has room for two, the other for four."""
    got = beam_search(small_gpt, None, [[1] * 6, [1] * 4], n_beams=2, max_new_tokens=9, stop=NEVER)
    assert [len(ids) for ids, _ in got] == [2, 4]


def test_beam_search_refuses_what_it_cannot_do(small_gpt, talker, images):
    """Catches: no beam at all, and pictures that belong to no row."""
    with pytest.raises(ValueError, match="n_beams 0 is below 1"):
        beam_search(small_gpt, None, [[1]], n_beams=0, max_new_tokens=2, stop=0)
    assert len(beam_search(small_gpt, None, [[1]], n_beams=1, max_new_tokens=1, stop=NEVER)) == 1
    with pytest.raises(ValueError, match="^max_new_tokens 0 is below 1$"):
        beam_search(small_gpt, None, [[1]], n_beams=1, max_new_tokens=0, stop=0)
    with pytest.raises(ValueError, match="image placeholders, but 3 pictures"):
        beam_search(
            talker, images, [[1, *PICTURE], [2, *PICTURE]], n_beams=2, max_new_tokens=2, stop=0
        )


# --- several answers to a prompt ---


@pytest.mark.parametrize("use_cache", [True, False])
def test_copies_of_a_prompt_are_read_once_and_answered_as_rows_of_their_own(
    talker, images, use_cache: bool
):
    """Against every prompt given three times. Catches: copies that share a cache, a length or
    another row's picture; rows dealt out in another order."""
    reads = []
    talker.vit.patch.register_forward_hook(lambda _, args, out: reads.append(len(out)))
    options = {"max_new_tokens": 8, "stop": 11, "use_cache": use_cache, "temperature": 0.8}
    got = generate(talker, images, PROMPTS, n_copies=3,
                   generator=torch.Generator().manual_seed(1), **options)
    assert reads[0] == 3, "each picture is looked at once"
    many = [p for p in PROMPTS for _ in range(3)]
    of_rows = torch.cat([images[own] for own in OF_ROW if own for _ in range(3)])
    want = generate(talker, of_rows, many, generator=torch.Generator().manual_seed(1), **options)
    assert got == want and len({tuple(ids) for ids in got[:3]}) > 1, "copies that do not differ"


def test_no_copies_are_refused(small_gpt):
    """Catches: a batch without rows."""
    with pytest.raises(ValueError, match="n_copies 0 is below 1"):
        generate(small_gpt, None, [[1]], max_new_tokens=2, stop=0, n_copies=0)


# --- repetition and given answers ---


def test_a_penalty_makes_a_negative_logit_more_negative():
    """Catches a division of negative logits, which would make a token likelier; words not said."""
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    said = torch.tensor([[True, True, False, False]])
    assert penalize(logits, said, 2.0).tolist() == [[1.0, -4.0, 1.0, -1.0]]
    assert penalize(logits, said, 1.0).tolist() == logits.tolist()


def test_a_penalty_keeps_a_row_from_repeating_itself(talker, images):
    """Catches: a penalty that helps repetition, counts another row's tokens or the prompt."""
    options = {"max_new_tokens": 10, "stop": NEVER}
    plain = generate(talker, images, PROMPTS, **options)
    hard = generate(talker, images, PROMPTS, repetition_penalty=1e6, **options)
    assert (
        all(len(set(row)) == len(row) for row in hard)
        and any(len(set(row)) < len(row) for row in plain)
    )
    assert [row[0] for row in hard] == [row[0] for row in plain]
    assert hard == alone(talker, images, repetition_penalty=1e6, **options)


def test_given_answers_are_ranked_by_their_likelihood(talker, images):
    """Catches: the prompt's tokens in the sum, no stop token, pads counted; row by row by hand."""
    prompts, answers = [[1, *PICTURE, 2, 3], [*PICTURE, 4]], [[7, 11], [8, 9, 10, 11], [5, 11]]
    got = answer_logprobs(talker, images[:2], prompts, answers, pad=0)
    for b, prompt in enumerate(prompts):
        for a, answer in enumerate(answers):
            logp = talker(torch.tensor([prompt + answer]), images[b:b + 1])[0].log_softmax(-1)
            want = sum(float(logp[len(prompt) - 1 + i, t].detach()) for i, t in enumerate(answer))
            assert float(got[b, a]) == pytest.approx(want, abs=1e-4)
    with pytest.raises(ValueError, match="^every answer needs at least one token$"):
        answer_logprobs(talker, images[:2], prompts, [[7], []], pad=0)


def test_a_given_answer_may_fill_the_context(gpt):
    """Catches a place reserved for the last token, which is scored and never read: 30 + 3 in 32."""
    prompt, answer = torch.randint(256, (30,)).tolist(), [7, 8, 9]
    [[got]] = answer_logprobs(gpt, None, [prompt], [answer], pad=0)
    logp = gpt(torch.tensor([prompt + answer[:-1]]))[0].detach().log_softmax(-1)
    assert float(got) == pytest.approx(sum(float(logp[29 + i, t]) for i, t in enumerate(answer)),
                                       abs=1e-4)


def test_a_model_in_half_precision_ranks_answers_too(gpt):
    """Catches sums in bfloat16, or a crash for want of one precision."""
    got = answer_logprobs(gpt.bfloat16(), None, [[1, 2]], [[3, 4], [5]], pad=0)
    assert got.dtype == torch.float32 and got.isfinite().all()
