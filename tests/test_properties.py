"""What must hold for any text, dialogue, batch and prompt, whichever hypothesis thinks of.

The same examples in every run, so that a red test stays red.
"""

import functools

import pytest
import torch
from hypothesis import (
    assume, given, settings, strategies as st,
)
from torch import Tensor

from conftest import stir
from minivlm.conversation import IMAGE_MARK, pack, render
from minivlm.generate import beam_search, filter_logits, generate, pick
from minivlm.gpt import GPTConfig
from minivlm.loading.batches import collate, hash_seed, shuffled
from minivlm.losses import next_token_loss
from minivlm.running.workers import batches
from minivlm.tokenizer import GPT2_PATTERN, PATTERN, SPECIALS, Tokenizer, train_bpe
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig

any_text = settings(derandomize=True, deadline=None, database=None, max_examples=150)
any_prompt = settings(any_text, max_examples=60)  # a model runs for each

BYTES = {bytes([i]): i for i in range(256)}
WORDS = train_bpe(["the red ring, the blue ring; isn't it a ring? 12 rings, 東京 🙂"], 300)
TOKENIZERS = [Tokenizer(BYTES), Tokenizer(WORDS), Tokenizer(WORDS, GPT2_PATTERN)]
PLAIN = TOKENIZERS[1]

# --- what is drawn ---

specials = st.sampled_from([*SPECIALS, IMAGE_MARK, "<|", "|>", "\r\n", "\x1c", " the ring", "'s"])
whole = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts = st.lists(specials | whole, max_size=5).map("".join)
halves = st.text(st.characters(categories=["Cs", "Lu", "So"]), max_size=6)  # lone surrogates
ranks = st.lists(st.binary(min_size=2, max_size=4), unique=True, max_size=20).map(
    lambda joins: BYTES | {join: 256 + i for i, join in enumerate(joins)})
spoken = texts.filter(str.strip)


@st.composite
def dialogues(draw) -> list[dict]:
    """An optional system turn, 1 to 4 rounds, the last one maybe unanswered; or one picture."""
    def say(role: str) -> dict:
        text = draw(spoken).replace(IMAGE_MARK, "<img>")
        return {"from": role, "value": text}

    turns = [say("system")] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        turns += [say("human"), say("gpt")]
    if draw(st.booleans()):
        asked = turns[-2 * draw(st.integers(1, len(turns) // 2))]
        at = draw(st.integers(0, len(asked["value"])))
        asked["value"] = asked["value"][:at] + IMAGE_MARK + asked["value"][at:]
    return turns[:-1] if draw(st.booleans()) else turns


@st.composite
def rows(draw, most: int = 6) -> list[tuple[list[int], list[bool]]]:
    """Rows as `render` makes them: two tokens or more, one behind the first is learned."""
    made = []
    for _ in range(draw(st.integers(1, most))):
        n = draw(st.integers(2, 9))
        ids = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
        learned = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        learned[draw(st.integers(1, n - 1))] = True
        made.append((ids, learned))
    return made


# --- tokenizer ---


@any_text
@given(texts, st.sampled_from(TOKENIZERS))
def test_any_text_comes_back_and_never_gives_a_special_id(text, tokenizer):
    """Catches a dropped character, and contract 7 broken: a special id that came from text."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < len(tokenizer.ranks) for i in ids)


@any_text
@given(halves, st.sampled_from(TOKENIZERS))
def test_half_a_character_becomes_the_replacement_sign(text, tokenizer):
    """Catches a UnicodeEncodeError: JSON's \\ud83d alone is text that no UTF-8 can hold."""
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == joined


@any_text
@given(st.lists(st.integers(0, PLAIN.vocab_size - 1), max_size=12))
def test_any_ids_that_a_model_may_write_can_be_read(ids):
    """Catches a crash on broken UTF-8, and special tokens that vanish from what is shown."""
    text = PLAIN.decode(ids)
    for i, name in enumerate(SPECIALS):
        assert text.count(name) >= ids.count(len(PLAIN.ranks) + i)


@any_text
@given(ranks, st.sampled_from([PATTERN, GPT2_PATTERN]), texts)
def test_a_tokenizer_of_any_ranks_survives_its_own_text(table, pattern, text):
    """Catches a rank or the split lost in the file, whose ids would mean other tokens."""
    made = Tokenizer(table, pattern)
    again = Tokenizer.from_text(made.to_text())
    assert (again.ranks, again.pattern) == (made.ranks, made.pattern)
    assert again.identity == made.identity and again.to_text() == made.to_text()
    assert again.encode(text) == made.encode(text)


@any_text
@given(st.lists(texts | halves, max_size=6), st.integers(256, 290), st.randoms())
def test_the_order_of_the_texts_trains_no_other_tokenizer(said, size, rng):
    """Catches ties settled by what came first; the ranks must make a tokenizer besides."""
    made = train_bpe(said, size)
    assert list(made.items()) == list(train_bpe(rng.sample(said, len(said)), size).items())
    assert 256 <= len(made) <= size and Tokenizer(made).ranks == made


# --- chat template ---


@any_text
@given(dialogues(), st.sampled_from(TOKENIZERS), st.integers(1, 5))
def test_in_any_dialogue_just_the_answers_are_learned(turns, tokenizer, N):
    """Catches a mask found again by searching, an end not learned, an image block torn apart."""
    ids, is_answer = render(turns, tokenizer, N)
    assert len(ids) == len(is_answer)
    spans, answers = [[]], [" " + t["value"].strip() for t in turns if t["from"] == "gpt"]
    for i, learned in zip(ids, is_answer):
        if learned:
            spans[-1].append(i)
        elif spans[-1]:
            spans.append([])
    spans = [span for span in spans if span]
    assert [span[-1] for span in spans] == [tokenizer.end] * len(answers)
    assert [tokenizer.decode(span[:-1]) for span in spans] == answers
    here = [t for t, i in enumerate(ids) if i == tokenizer.image]
    n_images = sum(t["value"].count(IMAGE_MARK) for t in turns)
    assert here == list(range(here[0], here[0] + N)) if n_images else not here
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    marks = {tokenizer.special[f"<|{name}|>"]: role for name, role in names.items()}
    opened = [marks[i] for i in ids if i in marks]
    assert opened == [t["from"] for t in turns] + ["gpt"] * (turns[-1]["from"] == "human")


@any_text
@given(dialogues(), st.integers(0, 99))
def test_every_beginning_of_a_dialogue_is_the_beginning_of_its_ids(turns, cut):
    """Catches a prompt at generation that training has never shown."""
    ids, is_answer = render(turns, PLAIN, 3)
    asked = [i for i, t in enumerate(turns) if t["from"] == "human"]
    head, _ = render(turns[: asked[cut % len(asked)] + 1], PLAIN, 3)
    assert ids[: len(head)] == head and not is_answer[len(head) - 1]


SPOILED = {
    "no role": lambda t: t.pop("from"), "no text": lambda t: t.pop("value"),
    "another role": lambda t: t.update({"from": "robot"}),
    "blank": lambda t: t.update(value=" \n"), "a number": lambda t: t.update(value=7),
    "a list as role": lambda t: t.update({"from": ["human"]}),
    "system again": lambda t: t.update({"from": "system"}),
}


@any_text
@given(dialogues(), st.integers(0, 99), st.sampled_from(sorted(SPOILED)))
def test_one_spoiled_turn_refuses_the_dialogue_by_its_number(turns, at, how):
    """Catches a TypeError, or a malformed dialogue that is trained on."""
    at %= len(turns)
    assume(at or how != "system again")  # a system turn may come first
    SPOILED[how](turns[at])
    with pytest.raises(ValueError, match=f"^turn {at} "):
        render(turns, PLAIN, 2)


# --- batches ---


@any_text
@given(rows(), st.integers(0, 9))
def test_targets_are_the_next_token_where_it_is_an_answer_and_ignored_elsewhere(made, pad):
    """Catches no shift or two, and pads that are learned; a pad's id may be an answer's."""
    batch = collate(made, pad, 8)
    T = batch.idx.shape[1]
    assert T == max(len(ids) for ids, _ in made) - 1
    for (ids, learned), idx, targets, length in zip(
            made, batch.idx.tolist(), batch.targets.tolist(), batch.lengths.tolist()):
        n = len(ids) - 1
        assert length == n and idx == ids[:-1] + [pad] * (T - n)
        want = [i if wanted else -100 for i, wanted in zip(ids[1:], learned[1:])]
        assert targets == want + [-100] * (T - n)


@any_text
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5),
       st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_packed_row_learns_every_answer_once_behind_the_whole_prompt(prompt, answers):
    """Catches an answer whose first token is predicted from another answer's last."""
    row, segments = pack(prompt, answers)
    batch = collate([row], 0, 99, segments=[segments])
    idx, targets, of = (x[0].tolist() for x in (batch.idx, batch.targets, batch.segments))
    for k, answer in enumerate(answers, 1):
        mine, last = [t for t, s in enumerate(of) if s == k], [-100] * (k < len(answers))
        assert [targets[t] for t in mine] == answer + last  # it is read, and nothing follows it
        read = prompt + answer if last else (prompt + answer)[:-1]
        assert [i for i, s in zip(idx, of) if s in (0, k)] == read
    assert all(t == -100 for t, s in zip(targets, of) if s == 0)
    alone = len(prompt) + max([len(answers[-1]) - 1, *map(len, answers[:-1])])
    collate([row], 0, alone, segments=[segments])
    with pytest.raises(ValueError, match=f"has {alone} tokens, the context holds {alone - 1}"):
        collate([row], 0, alone - 1, segments=[segments])


@any_text
@given(rows(), st.data())
def test_micro_batches_weighed_by_their_targets_make_the_whole_batchs_loss(made, data):
    """Catches rows lost or doubled by a split, and a mean of means that favors short answers."""
    n_images = data.draw(st.lists(st.integers(0, 2), min_size=len(made), max_size=len(made)))
    images = torch.arange(float(sum(n_images)))[:, None, None, None].expand(-1, 3, 1, 1)
    batch = collate(made, 0, 8, images=images, n_images=n_images)
    parts = batch.split(data.draw(st.integers(1, len(made))))
    logits = torch.randn(*batch.idx.shape, 10, generator=torch.Generator().manual_seed(len(made)))
    at, total, loss, pictures = 0, (batch.targets >= 0).sum(), 0.0, []
    for part in parts:
        T = part.idx.shape[1]
        own = next_token_loss(logits[at:at + len(part.idx), :T], part.targets)
        loss += own * (part.targets >= 0).sum() / total
        at += len(part.idx)
        shown = [] if part.images is None else part.images[:, 0, 0, 0].tolist()
        assert len(shown) == sum(part.n_images)
        pictures += shown
    assert at == len(made) and pictures == images[:, 0, 0, 0].tolist()
    assert sum((part.ids for part in parts), []) == batch.ids
    torch.testing.assert_close(loss, next_token_loss(logits, batch.targets))
    sizes = [len(part.idx) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@any_text
@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 3), st.booleans())
def test_an_epoch_shows_every_record_once_but_for_the_rest_of_a_batch(size, more, seed, by_length):
    """Catches records drawn twice, and an epoch that is the last one's copy."""
    n = size + more
    lengths = torch.arange(n) % 7 if by_length else None
    steps = n // size
    epochs = [[shuffled(e * steps + s, size, n, seed, lengths) for s in range(steps)]
              for e in range(2)]
    for epoch in epochs:
        seen = sum(epoch, [])
        assert all(len(part) == size for part in epoch)
        assert len(set(seen)) == len(seen) == steps * size and set(seen) <= set(range(n))
    if n > 8:
        assert epochs[0] != epochs[1]


@any_text
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3))
def test_a_run_resumed_at_any_step_is_shown_what_it_would_have_been(start, more, seed):
    """Catches batches that depend on the ones before, or on torch's global generator."""
    def make(step: int) -> list[float]:
        generator = torch.Generator().manual_seed(hash_seed(seed, step))
        return [*shuffled(step, 3, 10, seed), torch.rand((), generator=generator).item()]

    stop = start + more
    through = list(batches(make, 0, stop))
    torch.manual_seed(start)
    before = torch.get_rng_state()
    assert list(batches(make, start, stop)) == through[start:]
    assert torch.equal(torch.get_rng_state(), before)


# --- generation ---

BLOCK, V, N, IMAGE = 14, 9, 4, 8  # of a model whose last id stands for one of N image tokens
NEVER = -1


@functools.cache
def talker(prefix_lm: bool) -> VLM:
    """A VLM of 9 ids that answers every prompt differently."""
    torch.manual_seed(0)
    vit = ViTConfig(image_size=8, patch_size=4, n_layer=2, n_head=1, n_embd=8)
    gpt = GPTConfig(vocab_size=V, block_size=BLOCK, n_layer=2, n_head=2, n_embd=8)
    model = stir(VLM(VLMConfig(image_id=IMAGE, vit=vit, gpt=gpt, prefix_lm=prefix_lm)))
    with torch.no_grad():
        model.gpt.wpe.weight *= 3.0  # so that a greedy text does not repeat one token
    return model.eval()


@st.composite
def prompts(draw) -> tuple[list[list[int]], Tensor | None, list[Tensor | None]]:
    """1 to 4 rows of any length that leaves room, all their pictures, and each row's own if any."""
    made, counts = [], []
    for _ in range(draw(st.integers(1, 4))):
        words = st.lists(st.integers(0, IMAGE - 1), min_size=1, max_size=BLOCK - 1)
        ids, picture = draw(words), draw(st.booleans())
        made.append(ids[:1] + [IMAGE] * N + ids[1:BLOCK - 1 - N] if picture else ids)
        counts.append(int(picture))
    images = torch.randn(sum(counts), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own = [part if len(part) else None for part in images.split(counts)]
    return made, images if sum(counts) else None, own


def by_hand(model: VLM, images: Tensor | None, prompt: list[int], n: int, stop: int) -> list[int]:
    """Greedy decoding of one row, all read again for each token; the stop token is kept."""
    ids = list(prompt)
    prefix = torch.tensor([len(prompt)]) if model.config.prefix_lm else None
    while len(ids) < min(len(prompt) + n, BLOCK) and ids[len(prompt):][-1:] != [stop]:
        scores = model(torch.tensor([ids]), images, prefix=prefix)[0, -1, :IMAGE]
        ids.append(int(scores.argmax()))
    return ids[len(prompt):]


@any_prompt
@given(prompts(), st.integers(1, BLOCK), st.integers(0, 4), st.booleans())
@torch.no_grad()
def test_any_ragged_batch_is_answered_as_each_row_alone_by_hand(asked, n, ends, prefix_lm):
    """Catches a cache, a batch or a full context that changes an answer, and text past the end."""
    (rows, images, pictures), model = asked, talker(prefix_lm)
    free = by_hand(model, pictures[0], rows[0], n, NEVER)
    stop = free[ends % len(free)] if ends else NEVER  # so that one row ends before the others
    options = {"max_new_tokens": n, "stop": stop, "keep_stop": True}
    cached = generate(model, images, rows, **options)
    assert cached == generate(model, images, rows, use_cache=False, **options)
    for prompt, picture, answer in zip(rows, pictures, cached):
        assert answer == by_hand(model, picture, prompt, n, stop)
        assert len(prompt) + len(answer) <= BLOCK and IMAGE not in answer


@any_prompt
@given(prompts(), st.integers(1, 6), st.integers(0, 9), st.integers(0, V), st.floats(0.05, 1.0),
       st.floats(0.1, 3.0))
@torch.no_grad()
def test_sampling_with_and_without_a_cache_draws_the_same(asked, n, seed, top_k, top_p, heat):
    """Catches random numbers spent on rows that have ended, and scores that a cache has changed."""
    rows, images, _ = asked
    made = [
        generate(talker(False), images, rows, max_new_tokens=n, stop=3, temperature=heat,
                 top_k=top_k, top_p=top_p, use_cache=cache,
                 generator=torch.Generator().manual_seed(seed))
        for cache in (True, False)
    ]
    assert made[0] == made[1]
    assert all(len(p) + len(a) <= BLOCK and not {3, IMAGE} & {*a} for p, a in zip(rows, made[0]))


@any_prompt
@given(prompts(), st.integers(1, 5), st.integers(1, 3), st.integers(NEVER, IMAGE - 1))
@torch.no_grad()
def test_beams_do_not_depend_on_the_cache_or_the_other_rows(asked, n, n_beams, stop):
    """Catches beams of one row that go on with another row's keys; one beam is greedy."""
    (rows, images, pictures), model = asked, talker(False)
    options = {"max_new_tokens": n, "stop": stop, "n_beams": n_beams}
    together = beam_search(model, images, rows, **options)
    for prompt, picture, (text, score) in zip(rows, pictures, together):
        [(alone, its)] = beam_search(model, picture, [prompt], use_cache=False, **options)
        assert text == alone and score == pytest.approx(its, abs=1e-4)
        assert len(prompt) + len(text) <= BLOCK and IMAGE not in text
        if n_beams == 1:
            greedy = by_hand(model, picture, prompt, n, stop)
            assert text == [i for i in greedy if i != stop]


scores = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=8)


@any_text
@given(scores, st.floats(0.05, 5.0), st.integers(0, 9), st.floats(0.0, 1.0))
def test_filters_keep_the_likeliest_and_no_more_than_asked(row, heat, k, p):
    """Catches a kept token less likely than a dropped one, and a nucleus one token too large."""
    logits = torch.tensor([row])
    kept = filter_logits(logits, heat, k, p)[0] > -torch.inf
    gone = logits[0][~kept]
    assert kept[logits[0].argmax()] and (not len(gone) or gone.max() <= logits[0][kept].min())
    cut = filter_logits(logits, heat, k)[0]
    among = cut > -torch.inf
    if k:
        ties = (logits[0] == sorted(row, reverse=True)[min(k, len(row)) - 1]).sum()
        assert min(k, len(row)) <= among.sum() < min(k, len(row)) + ties
    mass = cut.double().softmax(0)
    assert p == 1 or mass[kept].sum() >= p - 1e-5
    assert kept.sum() == 1 or mass[kept].sum() - mass[kept].min() < p + 1e-5


@any_text
@given(scores, st.floats(0.05, 5.0), st.integers(0, 9), st.floats(0.0, 1.0), st.integers(0, 99))
def test_a_draw_is_one_of_those_kept_and_without_temperature_the_likeliest(row, heat, k, p, seed):
    """Catches a draw from unfiltered scores, and a temperature of 0 that still rolls dice."""
    logits = torch.tensor([row])
    draw = torch.rand(1, generator=torch.Generator().manual_seed(seed))
    assert logits[0, pick(logits, heat, k, p, draw)] >= logits[
        filter_logits(logits, heat, k, p) > -torch.inf].min()
    assert logits[0, pick(logits, 0.0, k, p)] == max(logits[0])
