"""The project's own code, called as the exercises' functions are: the checks must accept it."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from minivlm.attention_masks import segment_mask
from minivlm.conversation import Row, pack, render
from minivlm.gpt import GPTConfig
from minivlm.loading.batches import collate
from minivlm.losses import (
    clip_loss, dpo_loss, next_token_loss, ppo_policy_loss, ranking_loss,
)
from minivlm.rl import gae as gae_and_returns
from minivlm.rl import group_advantages as group
from minivlm.rl import whiten
from minivlm.templates import TEMPLATES
from minivlm.vit import ViT, ViTConfig
from minivlm.vlm import VLM, VLMConfig

ranking = ranking_loss


def next_token(logits: Tensor, idx: Tensor, is_answer: Tensor) -> Tensor:
    """collate shifts ids and mask, next_token_loss averages."""
    rows = [Row(*row) for row in zip(idx.tolist(), is_answer.tolist())]
    batch = collate(rows, pad=0, block_size=idx.shape[1])
    return next_token_loss(logits[:, :-1], batch.targets)


def packing(n_prompt: int, n_answers: list[int]) -> Tensor:
    """pack numbers the segments, segment_mask makes the mask of them."""
    _, segments = pack([0] * n_prompt, [[0] * n for n in n_answers])
    return segment_mask(torch.tensor([segments]))[0, 0]              # (T, T)


def patches(images: Tensor, weight: Tensor) -> Tensor:
    """A ViT's embedding of patches, without class token, places and norm."""
    C, _, P, _ = weight.shape
    vit = ViT(ViTConfig(images.shape[-1], P, n_layer=1, n_head=1, n_embd=C, feature_layer=-1))
    vit.patch.weight = nn.Parameter(weight)
    vit.pos = nn.Parameter(torch.zeros_like(vit.pos))
    vit.norm_pre = nn.Identity()
    return vit.embed(images)[:, 1:]                                  # (B, N, C)


def info_nce(similarity: Tensor, logit_scale: float) -> Tensor:
    """clip_loss; the captions' vectors are those of the axes."""
    return clip_loss(similarity, torch.eye(len(similarity)).to(similarity), logit_scale)


def splice(emb: Tensor, is_image: Tensor, img_emb: Tensor) -> Tensor:
    """A VLM's embedding; each token has an id of its own."""
    B, T, C = emb.shape
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": C}
    vit = ViTConfig(2, 1, feature_layer=-1, **sizes)                 # N = 4
    vlm = VLM(VLMConfig(image_id=B * T, vit=vit, gpt=GPTConfig(B * T + 1, T, **sizes)))
    ids = torch.arange(B * T).view(B, T).masked_fill(is_image, B * T)
    rows = torch.cat([emb.flatten(0, 1), emb.new_zeros(1, C)])
    vlm.gpt.wte.weight = nn.Parameter(rows)
    return vlm.embed(ids, img_emb=img_emb)


def dialogue(
    turns: list[tuple[str, list[int]]], user: int, assistant: int, end: int
) -> tuple[list[int], list[bool]]:
    """render, with a tokenizer that reads numbers."""
    marks = {"<|user|>": [user], "<|assistant|>": [assistant], "": []}
    numbers = SimpleNamespace(
        template=TEMPLATES["minivlm"], marks=marks, begin=[], end=end, image=0,
        encode=lambda text: [int(word) for word in text.split()],
    )
    texts = [{"from": role, "value": " ".join(map(str, ids))} for role, ids in turns]
    return tuple(render(texts, numbers, n_image_tokens=4))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """The first of the two results."""
    return gae_and_returns(rewards, values, mask, gamma, lam)[0]


def ppo(
    logp: Tensor, old_logp: Tensor, advs: Tensor, mask: Tensor, clip_eps: float
) -> Tensor:
    """The first of the two results."""
    return ppo_policy_loss(logp, old_logp, advs, mask, clip_eps)[0]


def dpo(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor, beta: float,
) -> tuple[Tensor, Tensor]:
    """dpo_loss, and its gradient by torch."""
    chosen_logp = chosen_logp.clone().requires_grad_()
    loss = dpo_loss(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, beta)
    loss.sum().backward()
    return loss, -chosen_logp.grad
