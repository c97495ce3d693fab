"""Choosing tokens and searching for texts beside transformers."""

import torch
from torch import nn

from minivlm.generate import beam_search, filter_logits, generate, penalize
from minivlm.gpt import GPT, GPTConfig
from parity.peers import whole


def twins(rng, peer, vocab_size: int) -> tuple[GPT, nn.Module]:
    """A random GPT and transformers' GPT-2 with its weights; the id 0 ends a text."""
    n_layer, n_head = rng.randint(1, 2), rng.randint(1, 2)
    ours = GPT(GPTConfig(vocab_size, 24, n_layer, n_head, 8 * n_head)).eval()
    theirs = peer.GPT2LMHeadModel(peer.GPT2Config(
        vocab_size=vocab_size, n_positions=24, n_layer=n_layer, n_head=n_head, n_embd=8 * n_head,
        bos_token_id=1, eos_token_id=0, pad_token_id=0)).eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(0, 0.5)
        ours.wpe.weight *= 4  # else a text repeats one token
    pairs = [("transformer.wte", ours.wte), ("transformer.wpe", ours.wpe),
             ("transformer.ln_f", ours.norm), ("lm_head", ours.head)]
    for i, block in enumerate(ours.blocks):
        pairs += [(f"transformer.h.{i}.{name}", part) for name, part in (
            ("ln_1", block.norm1), ("attn.c_attn", block.attn.qkv),
            ("attn.c_proj", block.attn.proj), ("ln_2", block.norm2), ("mlp.c_fc", block.mlp[0]),
            ("mlp.c_proj", block.mlp[2]))]
    state = {f"{name}.{kind}": w.T if ".c_" in name and w.dim() == 2 else w  # (in, out) there
             for name, part in pairs for kind, w in part.state_dict().items()}
    theirs.load_state_dict(state)
    return ours, theirs


def cut(ids: list[int]) -> list[int]:
    """What stands before the first 0."""
    return ids[:ids.index(0)] if 0 in ids else ids


# --- one token ---


def test_the_chain_of_filters_is_transformers(agreement):
    """Catches top-p before top-k, the temperature last, a penalty behind it, a token too many.

    Its own list of processors says in which order they come. Every other case has equal logits:
    which of them top-p leaves is up to the sort in both, so there rows are compared sorted.
    """
    peer = whole("transformers")
    model = peer.GPT2LMHeadModel(peer.GPT2Config(
        vocab_size=9, n_positions=8, n_layer=1, n_head=1, n_embd=8))
    seen = agreement("penalty, temperature, top-k, top-p in their order: logits left",
                     "transformers", "GenerationMixin._get_logits_processor", 1e-12)
    for i, rng in enumerate(seen.cases(400)):
        B, V = rng.randint(1, 6), rng.randint(1, 30)
        logits = 2 * torch.randn(B, V, dtype=torch.float64)
        if i % 2:
            logits = logits.round()
        options = {"temperature": rng.uniform(0.3, 2), "top_k": rng.randint(1, V + 2),
                   "top_p": rng.uniform(0.05, 0.99), "repetition_penalty": rng.uniform(1.01, 3)}
        written = torch.randint(V, (B, rng.randint(1, 5)))
        chain = model._get_logits_processor(
            peer.GenerationConfig(do_sample=True, **options), input_ids_seq_length=1,
            logits_processor=[], device="cpu")
        said = torch.zeros(B, V, dtype=torch.bool).scatter(1, written, True)
        penalty = options.pop("repetition_penalty")
        ours = filter_logits(penalize(logits, said, penalty), **options)
        theirs = chain(written, logits)
        if i % 2:
            ours, theirs = ours.sort().values, theirs.sort().values
        seen.same(ours.isfinite().tolist(), theirs.isfinite().tolist())
        seen.close(ours[ours.isfinite()], theirs[theirs.isfinite()])


# --- whole texts ---


def test_greedy_texts_of_rows_of_any_length_are_transformers(agreement):
    """Catches a row that depends on its neighbors' lengths, a stop token unheeded or kept."""
    peer = whole("transformers")
    seen = agreement("greedy texts of prompts of different length: ids", "transformers",
                     "generate", 0)
    for rng in seen.cases():
        V = rng.randint(5, 12)
        ours, theirs = twins(rng, peer, V)
        prompts = [[rng.randrange(1, V) for _ in range(rng.randint(1, 9))] for _ in range(3)]
        made = generate(ours, None, prompts, max_new_tokens=10, stop=0)
        for prompt, ids in zip(prompts, made):
            want = theirs.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)
            seen.same(ids, cut(want[0, len(prompt):].tolist()))


def test_beam_search_is_transformers(agreement):
    """Catches another end of the search, another penalty of length, beams of rows mixed up."""
    peer = whole("transformers")
    texts = agreement("beam search, 2 to 5 beams: ids", "transformers", "generate", 0)
    scores = agreement("beam search, 2 to 5 beams: scores", "transformers", "generate", 1e-5)
    for rng, _ in zip(texts.cases(), scores.cases()):
        V, n_beams, T = rng.randint(5, 12), rng.randint(2, 5), rng.randint(1, 6)
        ours, theirs = twins(rng, peer, V)
        prompts = [[rng.randrange(1, V) for _ in range(T)] for _ in range(rng.randint(1, 3))]
        options = {"max_new_tokens": rng.randint(1, 14),
                   "length_penalty": rng.choice((0.0, 0.5, 1.0, 2.0))}
        made = beam_search(ours, None, prompts, n_beams=n_beams, stop=0, **options)
        want = theirs.generate(
            torch.tensor(prompts), num_beams=n_beams, early_stopping=False, do_sample=False,
            return_dict_in_generate=True, output_scores=True, **options)
        texts.same([ids for ids, _ in made], [cut(row[T:]) for row in want.sequences.tolist()])
        scores.close(torch.tensor([score for _, score in made]), want.sequences_scores)
