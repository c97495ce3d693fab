"""Time our steps beside those of transformers and TRL, on the same work.

   python bench.py                                  sizes of the default world
   python bench.py --size base                      ViT-B/32, GPT-2 124M
   python bench.py --size large --device cuda       ViT-L/14, GPT-2 350M

Our step and the peer's take turns, so that a busy machine disturbs both alike. A large
matrix product is timed in every turn: its rate is what the machine can do. Both sides have
the same sizes and inputs. Where there is a loss, they also have the same weights.
Reads: nothing; without the packages of the parity extra, only ours is timed.
Writes: results/bench.json, in which other sizes stay.
Expect (2 CPU cores): 5 min for tiny, 15 for base
"""

import gc
import importlib.util
import json
import math
import multiprocessing
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import train_ppo
from minivlm.clip import CLIP, CLIPConfig
from minivlm.conversation import make_row, pack
from minivlm.generate import generate
from minivlm.gpt import GPT, GPTConfig
from minivlm.heads import Learner, RewardModel, ValueModel
from minivlm.loading.batches import collate
from minivlm.loading.images import Pictures
from minivlm.losses import (
    IGNORE_INDEX, clip_loss, dpo_loss, kl_estimate, next_token_loss, ppo_policy_loss,
    ppo_value_loss,
)
from minivlm.optim import Optimizer, Together
from minivlm.preferences.pairs import PairBatch, pair_logprobs
from minivlm.pretrained import export
from minivlm.pretrained.families import write_config
from minivlm.pretrained.weight_names import clip_names, llava_names, lm_names, to_theirs
from minivlm.rl import gae, kl_rewards, whiten
from minivlm.rollout import PromptBatch, roll_out, share_vit
from minivlm.running.machine import (
    autocast, is_bfloat16, matmul_rate, peak_memory, pick_device, provenance, seconds_of,
)
from minivlm.running.options import check, cli
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig

# --- config ---


@dataclass
class Config:
    """Options; the comments are the help texts."""

    size: str = "tiny"  # tiny | base | large; base is ViT-B/32 and GPT-2 124M
    only: str = ""  # cases to time, separated by commas; empty = all
    rounds: int = 7  # >= 1; how often both take their turn
    seconds: float = 1.0  # > 0; least duration of a turn
    peers: bool = True  # time transformers and TRL too, if they are installed
    memory: bool = True  # measure memory, each side in a process of its own
    device: str = "cpu"  # auto, cpu, cuda, cuda:1
    dtype: str = "auto"  # auto | float32 | bfloat16; auto = bfloat16 on a GPU, else float32
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice
    seed: int = 0  # >= 0; decides weights and inputs
    out: str = "results/bench.json"  # file to write

    def __post_init__(self):
        unknown = sorted(set(self.only.split(",")) - set(CASES) - {""})
        if unknown:
            raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")


@dataclass(frozen=True)
class Size:
    """Models, batches, and lengths in tokens, from the shortest to the longest."""

    clip: CLIPConfig
    gpt: GPTConfig
    pairs: int  # CLIP's batch
    caption: tuple[int, int]
    windows: tuple[int, int]  # a language model's batch, B and T
    rows: int  # of instruction tuning
    question: tuple[int, int]
    answer: tuple[int, int]
    preferences: int  # DPO's batch
    rollout: tuple[int, int]  # PPO's batch, and the tokens of each answer
    asked: int  # prompts with pictures that are answered at once

    @property
    def vlm(self) -> VLMConfig:
        """A VLM of both, with the projector of LlavaForConditionalGeneration."""
        return VLMConfig(self.gpt.vocab_size - 1, self.clip.vit, self.gpt, "llava")


GPT2 = GPTConfig(50257, 1024, 12, 12, 768)
SIZES = {
    "tiny": Size(
        CLIPConfig(ViTConfig(60, 20, 4, 4, 128, "gelu"), 1536, 80, 3, 4, 128, 128, "gelu"),
        GPTConfig(1536, 256, 4, 4, 128, act="gelu"), 192, (8, 40), (6, 256), 64, (8, 32),
        (4, 40), 64, (128, 24), 64,
    ),
    "base": Size(
        CLIPConfig(
            ViTConfig(224, 32, 12, 12, 768), 49408, 77, 12, 8, 512, 512, "quick_gelu"
        ),
        GPT2, 16, (8, 40), (4, 128), 8, (8, 32), (8, 80), 4, (8, 24), 16,
    ),
    "large": Size(
        CLIPConfig(
            ViTConfig(224, 14, 24, 16, 1024), 49408, 77, 12, 12, 768, 768, "quick_gelu"
        ),
        GPTConfig(50257, 1024, 24, 16, 1024), 256, (8, 40), (16, 1024), 32, (8, 32),
        (8, 200), 32, (64, 64), 64,
    ),
}


# --- what both sides work on ---


class Inputs:
    """Random inputs of one size, the same whenever they are made with the same seed."""

    def __init__(self, size: Size, seed: int, device: torch.device):
        self.size = size
        self.device = device
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.words = min(size.gpt.vocab_size, size.clip.vocab_size) - 2  # no special id

    def text(self, lengths: tuple[int, int]) -> list[int]:
        """A text of random tokens, and of a random length."""
        return [self.rng.randrange(2, self.words) for _ in range(self.rng.randint(*lengths))]

    def pictures(self, n: int) -> Tensor:
        """(n, 3, S, S)."""
        S = self.size.clip.vit.image_size
        return torch.randn(n, 3, S, S, generator=self.generator).to(self.device)

    def prompt(self) -> list[int]:
        """A question about a picture."""
        c = self.size.vlm
        return [c.image_id] * c.vit.n_tokens + self.text(self.size.question)


def padded(rows: list[list[int]], fill: int, device: torch.device, left=False) -> Tensor:
    """(B, T), the rows filled up on one side."""
    T = max(map(len, rows))
    full = [[fill] * (T - len(r)) + r if left else r + [fill] * (T - len(r)) for r in rows]
    return torch.tensor(full, device=device)


# --- how both are run ---


@dataclass
class Bench:
    """What each case is made of; `hf` is transformers, or None."""

    size: Size
    inputs: Inputs
    device: torch.device
    cfg: Config
    hf: object

    def autocast(self):
        """The context in which models compute."""
        return autocast(self.device, self.cfg.dtype)

    def peer(self, name: str, config: dict, weights: dict[str, Tensor]) -> nn.Module:
        """Make transformers' model of a config with the same weights."""
        weights = {k: w.detach().float().contiguous() for k, w in weights.items()}
        with TemporaryDirectory() as folder:
            export.write(Path(folder), weights, {"config.json": config})
            model = getattr(self.hf, name).from_pretrained(folder)
        return model.train().to(self.device)


def trainer(model: nn.Module, lr: float = 1e-4) -> Callable[[Tensor], float]:
    """What transformers' Trainer does with a loss: gradients, clipping, a step of AdamW."""
    params = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), fused=True)

    def step(loss: Tensor) -> float:
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item()

    return step


@dataclass
class Case:
    """Two ways to do the same work once; both return the same loss, or None."""

    ours: Callable[[], float | None]
    peer: Callable[[], float | None] | None = None
    n: int = 1  # how many units it does
    unit: str = "step"
    trains: bool = False  # whether its share of the matmul rate means something


# --- training steps ---


def clip(b: Bench) -> Case:
    """CLIP: both towers, InfoNCE over all pairs."""
    c, B = b.size.clip, b.size.pairs
    model = CLIP(c)
    rows = [b.inputs.text(b.size.caption) + [c.vocab_size - 1] for _ in range(B)]
    images = b.inputs.pictures(B)
    lengths = torch.tensor([len(row) for row in rows], device=b.device)
    idx = padded(rows, c.vocab_size - 1, b.device)
    peer = None
    if b.hf:
        weights = to_theirs(clip_names(c), model.state_dict())
        theirs = b.peer("CLIPModel", export.clip_config(c, None), weights)
        mask = (torch.arange(idx.shape[1], device=b.device) < lengths[:, None]).long()
        update = trainer(theirs)

        def peer() -> float:
            with b.autocast():
                loss = theirs(
                    input_ids=idx, pixel_values=images, attention_mask=mask, return_loss=True
                ).loss
            return update(loss)

    model.to(b.device)
    optimizer = Optimizer(model, 1e-4, 0)

    def ours() -> float:
        with b.autocast():
            out = model(images, idx, lengths)
        loss = clip_loss(*out)
        loss.backward()
        optimizer.step(1, 1.0)
        model.clamp_scale()
        return loss.item()

    return Case(ours, peer, trains=True)


def lm(b: Bench) -> Case:
    """GPT: language modelling on windows without pads."""
    c, (B, T) = b.size.gpt, b.size.windows
    model = GPT(c)
    ids = torch.tensor([b.inputs.text((T + 1, T + 1)) for _ in range(B)], device=b.device)
    read, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    peer = None
    if b.hf:
        weights = to_theirs(lm_names(c), model.state_dict())
        theirs = b.peer("GPT2LMHeadModel", write_config(c), weights)
        update = trainer(theirs)

        def peer() -> float:
            with b.autocast():
                loss = theirs(input_ids=read, labels=labels, shift_labels=labels).loss
            return update(loss)

    model.to(b.device)
    optimizer = Optimizer(model, 1e-4, 0)

    def ours() -> float:
        with b.autocast():
            logits = model(read)
        loss = next_token_loss(logits, labels)
        loss.backward()
        optimizer.step(1, 1.0)
        return loss.item()

    return Case(ours, peer, trains=True)


def llava(b: Bench, model: VLM) -> nn.Module:
    """transformers' LLaVA with the weights of a VLM; the ViT is frozen."""
    weights = to_theirs(llava_names(model.config), model.state_dict())
    config = export.llava_config(model.config)
    theirs = b.peer("LlavaForConditionalGeneration", config, weights)
    theirs.model.vision_tower.requires_grad_(False)
    theirs.lm_head.weight = theirs.get_input_embeddings().weight  # tied, as ours
    return theirs


def vlm(b: Bench) -> VLM:
    """A VLM whose ViT is frozen."""
    model = VLM(b.size.vlm)
    model.vit.requires_grad_(False)
    return model


def sft(b: Bench) -> Case:
    """LLaVA's instruction tuning: cross-entropy on the answers, the ViT frozen."""
    model = vlm(b)
    prompts = [b.inputs.prompt() for _ in range(b.size.rows)]
    rows = [make_row((p, False), (b.inputs.text(b.size.answer), True)) for p in prompts]
    rows.sort(key=lambda row: len(row.ids))
    images = b.inputs.pictures(len(rows))
    n = [1] * len(rows)
    batch = collate(rows, 0, b.size.gpt.block_size, None, images, n).to(b.device)
    parts = batch.split(min(4, len(rows)))
    peer = None
    if b.hf:
        theirs = llava(b, model)
        full = padded([row.ids for row in rows], 0, b.device)
        lengths = torch.tensor([len(row.ids) for row in rows], device=b.device)
        mask = (torch.arange(full.shape[1], device=b.device) < lengths[:, None]).long()
        labels = torch.full_like(full, IGNORE_INDEX)
        labels[:, 1:] = batch.targets
        update = trainer(theirs)

        def peer() -> float:
            with b.autocast():
                loss = theirs(
                    input_ids=full, attention_mask=mask, pixel_values=images, labels=labels
                ).loss
            return update(loss)

    model.to(b.device)
    optimizer = Optimizer(model, 1e-4, 0)

    def ours() -> float:
        total = 0.0
        for part in parts:
            at = part.targets != IGNORE_INDEX
            with b.autocast():
                logits = model(part.idx, part.images, at=at)
            loss = next_token_loss(logits, part.targets[at])
            loss = loss * part.n_supervised / batch.n_supervised
            loss.backward()
            total += loss.item()
        optimizer.step(1, 1.0)
        return total

    return Case(ours, peer, trains=True)


def dpo(b: Bench) -> Case:
    """DPO, the reference's log-probabilities known: ours reads a prompt once for both answers."""
    model = vlm(b)
    B, answer = b.size.preferences, b.size.answer
    pairs = [(b.inputs.prompt(), b.inputs.text(answer), b.inputs.text(answer)) for _ in range(B)]
    pairs.sort(key=lambda pair: sum(map(len, pair)))
    images = b.inputs.pictures(B)
    packed = [pack(prompt, [chosen, rejected]) for prompt, chosen, rejected in pairs]
    batch = collate(
        [row for row, _ in packed], 0, b.size.gpt.block_size, None, images, [1] * B,
        [segments for _, segments in packed],
    ).to(b.device)
    parts = [PairBatch(x, torch.ones(x.idx.shape, device=b.device)) for x in batch.split(2)]
    beta, ref = 0.1, torch.zeros(B, device=b.device)
    peer = None
    if b.hf:
        from tests.parity.peers import functions

        space = {"torch": torch, "F": F}
        functions("trl", "trainer/dpo_trainer.py", ("get_batch_logps",), space)
        theirs = llava(b, model)
        rows = [prompt + pair[k] for k in (0, 1) for prompt, *pair in pairs]
        full = padded(rows, 0, b.device)                             # (2 B, T)
        starts = torch.tensor([len(prompt) for prompt, *_ in pairs] * 2, device=b.device)
        lengths = torch.tensor([len(row) for row in rows], device=b.device)
        columns = torch.arange(full.shape[1], device=b.device)
        mask = columns < lengths[:, None]
        labels = full.masked_fill(~mask | (columns < starts[:, None]), IGNORE_INDEX)
        both = torch.cat([images, images])
        update = trainer(theirs)

        def peer() -> float:
            with b.autocast():
                logits = theirs(
                    input_ids=full, attention_mask=mask.long(), pixel_values=both,
                    use_cache=False,
                ).logits
            logps, _ = space["get_batch_logps"](logits, labels)
            chosen, rejected = logps.chunk(2)
            loss = dpo_loss(chosen, rejected, ref, ref, beta).mean()
            return update(loss)

    model.to(b.device)
    optimizer = Optimizer(model, 1e-4, 0)

    def ours() -> float:
        total = 0.0
        for part in parts:
            with b.autocast():
                chosen, rejected, _ = pair_logprobs(model, part)
            zeros = ref[:len(chosen)]
            loss = dpo_loss(chosen, rejected, zeros, zeros, beta).sum() / B
            loss.backward()
            total += loss.item()
        optimizer.step(1, 1.0)
        return total

    return Case(ours, peer, trains=True)


def ppo(b: Bench, peer_of: Callable) -> Case:
    """An iteration of PPO: draw answers, score them, one pass of two updates.

    Args:
        peer_of: makes the peer's iteration. TRL 0.11 has two trainers. The value head of
            PPOTrainer sits on the policy. PPOv2Trainer has a value model of its own, as
            InstructGPT and we do, which takes nearly twice the arithmetic.
    """
    B, n_new = b.size.rollout
    policy, ref, judge = vlm(b), vlm(b), RewardModel(vlm(b))
    for other in (ref, judge.vlm):
        other.vit.load_state_dict(policy.vit.state_dict())
    prompts = [b.inputs.prompt() for _ in range(B)]
    images = b.inputs.pictures(B)
    peer = peer_of(b, policy, prompts, images, n_new) if b.hf else None

    value_model = ValueModel.from_reward_model(judge)
    share_vit([policy, ref, judge.vlm, value_model.vlm])
    for frozen in (ref, judge):
        frozen.requires_grad_(False)
    learner = Learner(policy, value_model, 0.1)
    for part in (learner, ref, judge):
        part.to(b.device).eval()
    optimizer = Together(Optimizer(policy, 1e-5, 0), Optimizer(value_model, 1e-5, 0))
    # ids of no tokens: no answer ends early, on either side
    ids = SimpleNamespace(end=-1, pad=0, image=policy.config.image_id)
    questions = [{"id": str(i)} for i in range(B)]
    batch = PromptBatch(questions, images, prompts, prompts, 0)
    cfg = train_ppo.Config(batch_size=B, grad_accum=min(4, B // 2))
    run = SimpleNamespace(autocast=b.autocast, check=lambda *args: None)

    def ours() -> None:
        with b.autocast():
            rollout = roll_out(policy, ref, judge, value_model, batch, ids, n_new, 1.0)
        mask = rollout.mask
        kl = kl_estimate(rollout.logp, rollout.ref_logp)
        rewards = kl_rewards(rollout.worth(1.0, 0.0), kl, mask, learner.kl_coef)
        advs, returns = gae(rewards, rollout.values, mask, 1.0, 0.95)
        train_ppo.update(
            learner, optimizer, rollout, whiten(advs, mask), returns, 1, 0, cfg, run
        )

    return Case(ours, peer, unit="iteration")


class WithValues(nn.Module):
    """A model of transformers with a head that gives a value at each token."""

    def __init__(self, b: Bench, policy: VLM):
        super().__init__()
        self.b = b
        self.model = llava(b, policy)
        self.head = nn.Linear(b.size.gpt.n_embd, 1).to(b.device)

    def values(self, **inputs) -> Tensor:
        """(B, T), without logits."""
        with self.b.autocast():
            hidden = self.model.model(**inputs).last_hidden_state
        return self.head(hidden.float())[..., 0]

    def forward(self, **inputs):
        """Logits, no loss, values: what TRL's AutoModelForCausalLMWithValueHead returns."""
        with self.b.autocast():
            out = self.model(**inputs, output_hidden_states=True)
        values = self.head(out.hidden_states[-1].float())[..., 0]
        return out.logits.float(), None, values


def trl_iteration(
    b: Bench, policy: VLM, prompts: list[list[int]], images: Tensor, n_new: int
) -> Callable[[], None]:
    """The same iteration with TRL's PPOTrainer, its methods read out of its file."""
    import warnings

    import numpy

    from tests.parity.peers import functions

    space = {"torch": torch, "F": F, "np": numpy, "math": math, "warnings": warnings,
             "flatten_dict": dict}
    functions("trl", "core.py", (
        "masked_mean", "masked_var", "masked_whiten", "clip_by_value", "entropy_from_logits",
        "logprobs_from_logits"), space)
    space["PPODecorators"] = SimpleNamespace(empty_device_cache=lambda: lambda f: f)
    methods = ("compute_rewards", "_kl_penalty", "compute_advantages", "loss",
               "batched_forward_pass", "train_minibatch")
    functions("trl", "trainer/ppo_trainer.py", methods, space)
    B = len(prompts)
    drawer, ref, judge = (WithValues(b, policy) for _ in range(3))
    params = [p for p in drawer.parameters() if p.requires_grad]
    trainer = SimpleNamespace(
        config=SimpleNamespace(
            mini_batch_size=B // 2, kl_penalty="kl", whiten_rewards=False, gamma=1.0, lam=0.95,
            cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, ratio_threshold=10.0,
            max_grad_norm=1.0),
        accelerator=SimpleNamespace(
            backward=lambda loss: loss.backward(), sync_gradients=True,
            clip_grad_norm_=nn.utils.clip_grad_norm_),
        kl_ctl=SimpleNamespace(value=0.1), is_encoder_decoder=False, model=drawer,
        model_params=params, optimizer=torch.optim.AdamW(params, lr=1e-5, fused=True),
    )
    for name in methods:
        setattr(trainer, name, (lambda f: lambda *a, **k: f(trainer, *a, **k))(space[name]))
    left = padded(prompts, 0, b.device, left=True)                   # (B, T)
    seen = padded([[1] * len(p) for p in prompts], 0, b.device, left=True)
    queries = [torch.tensor(p, device=b.device) for p in prompts]

    def iteration() -> None:
        for part in (drawer, ref, judge):
            part.eval()
        with b.autocast():
            out = drawer.model.generate(
                input_ids=left, attention_mask=seen, pixel_values=images, do_sample=True,
                top_k=0, max_new_tokens=n_new, min_new_tokens=n_new, pad_token_id=0,
                suppress_tokens=[policy.config.image_id],
            )
        responses = list(out[:, -n_new:])
        rows = [torch.cat(both).tolist() for both in zip(queries, responses)]
        ids = padded(rows, 0, b.device)
        mask = padded([[1] * len(row) for row in rows], 0, b.device)
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": images}
        with torch.no_grad():
            values = judge.values(**inputs)
            scores = values.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
            logp, _, values, masks = trainer.batched_forward_pass(
                drawer, queries, responses, inputs)
            ref_logp, *_ = trainer.batched_forward_pass(ref, queries, responses, inputs)
            rewards, _, _ = trainer.compute_rewards(scores, logp, ref_logp, masks)
            values, advs, returns = trainer.compute_advantages(values, rewards, masks)
        for rows in torch.randperm(B).split(B // 2):
            part = {k: x[rows] for k, x in inputs.items()}
            new_logp, logits, new_values, _ = trainer.batched_forward_pass(
                drawer, [queries[i] for i in rows], [responses[i] for i in rows], part,
                return_logits=True)
            trainer.train_minibatch(
                logp[rows], values[rows], new_logp, logits, new_values, masks[rows], advs[rows],
                returns[rows])

    return iteration


def trl2_iteration(
    b: Bench, policy: VLM, prompts: list[list[int]], images: Tensor, n_new: int
) -> Callable[[], None]:
    """The same iteration as TRL's PPOv2Trainer takes it, whose loop is one long method.

    So the calls of the models, their order and their shapes are TRL's, the lines are not.
    """
    B = len(prompts)
    drawer, ref = llava(b, policy), llava(b, policy)
    value_model, judge = WithValues(b, policy), WithValues(b, policy)
    both = nn.ModuleList([drawer, value_model])
    adamw = torch.optim.AdamW(
        [p for p in both.parameters() if p.requires_grad], lr=1e-5, fused=True
    )
    left = padded(prompts, 0, b.device, left=True)                   # (B, T)
    seen = padded([[1] * len(p) for p in prompts], 0, b.device, left=True)
    answer = slice(left.shape[1] - 1, -1)  # positions that predict the answer
    ones = torch.ones(B, n_new, dtype=torch.bool, device=b.device)

    def logits_of(model: nn.Module, inputs: dict) -> Tensor:
        with b.autocast():
            return model(**inputs).logits[:, answer].float()

    def logp_of(logits: Tensor, ids: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]

    def iteration() -> None:
        with torch.no_grad(), b.autocast():
            out = drawer.generate(
                input_ids=left, attention_mask=seen, pixel_values=images, do_sample=True,
                top_k=0, max_new_tokens=n_new, min_new_tokens=n_new, pad_token_id=0,
                suppress_tokens=[policy.config.image_id], return_dict_in_generate=True,
                output_scores=True,
            )
        ids = out.sequences[:, -n_new:]                              # (B, n_new)
        mask = torch.cat([seen, ones.long()], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": out.sequences, "attention_mask": mask,
                  "position_ids": positions, "pixel_values": images}
        with torch.no_grad():
            logp = logp_of(torch.stack(out.scores, dim=1).float(), ids)
            ref_logp = logp_of(logits_of(ref, inputs), ids)
            values = value_model.values(**inputs)[:, answer]
            rewards = -0.1 * (logp - ref_logp)
            rewards[:, -1] += judge.values(**inputs)[:, -1]
            advs, returns = gae(rewards, values, ones, 1.0, 0.95)
            advs = whiten(advs, ones)
        for rows in torch.randperm(B).split(B // 2):
            part = {k: x[rows] for k, x in inputs.items()}
            new_values = value_model.values(**part)[:, answer]
            logits = logits_of(drawer, part)
            loss, _ = ppo_policy_loss(
                logp_of(logits, ids[rows]), logp[rows], advs[rows], ones[rows], 0.2
            )
            value_loss = ppo_value_loss(
                new_values, values[rows], returns[rows], ones[rows], 0.2
            )
            (loss + 0.1 * value_loss).backward()
            adamw.step()
            adamw.zero_grad()
            with torch.no_grad():  # TRL logs the entropy
                (logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)).mean()

    return iteration


# --- generation ---


def greedy(b: Bench, n: int, n_new: int = 64) -> Case:
    """Greedy generation of a GPT, with a KV cache, for n prompts of different lengths."""
    c = b.size.gpt
    model = GPT(c)
    prompts = [b.inputs.text(b.size.question) for _ in range(n)]
    peer = None
    if b.hf:
        weights = to_theirs(lm_names(c), model.state_dict())
        theirs = b.peer("GPT2LMHeadModel", write_config(c), weights).eval()
        left = padded(prompts, 0, b.device, left=True)
        seen = padded([[1] * len(p) for p in prompts], 0, b.device, left=True)

        def peer() -> None:
            with b.autocast():
                theirs.generate(
                    input_ids=left, attention_mask=seen, do_sample=False, pad_token_id=0,
                    max_new_tokens=n_new, min_new_tokens=n_new,
                )

    model.to(b.device)

    def ours() -> None:
        with b.autocast():
            generate(model, None, prompts, max_new_tokens=n_new, stop=-1)

    return Case(ours, peer, n_new, "token of each row")


def sample(b: Bench, n_new: int = 16) -> Case:
    """Drawing answers to questions about pictures."""
    model = vlm(b)
    n = b.size.asked
    prompts, images = [b.inputs.prompt() for _ in range(n)], b.inputs.pictures(n)
    peer = None
    if b.hf:
        theirs = llava(b, model).eval()
        left = padded(prompts, 0, b.device, left=True)
        seen = padded([[1] * len(p) for p in prompts], 0, b.device, left=True)

        def peer() -> None:
            with b.autocast():
                theirs.generate(
                    input_ids=left, attention_mask=seen, pixel_values=images, do_sample=True,
                    top_k=0, pad_token_id=0, max_new_tokens=n_new, min_new_tokens=n_new,
                    suppress_tokens=[model.config.image_id],
                )

    model.to(b.device)

    def ours() -> None:
        with b.autocast():
            generate(
                model, images, prompts, max_new_tokens=n_new, stop=-1, temperature=1.0,
                generator=torch.Generator(b.device).manual_seed(0),
            )

    return Case(ours, peer, n_new, "token of each row")


# --- batches ---


def pictures(b: Bench, n: int = 16) -> Case:
    """Reading photographs, JPEG files of 480 x 640: decode, resize, normalize."""
    S = b.size.clip.vit.image_size
    folder = TemporaryDirectory()
    noise = torch.rand(n, 15, 20, 3, generator=b.inputs.generator).mul(255).byte().numpy()
    names = [f"{i}.jpg" for i in range(n)]
    for name, small in zip(names, noise):
        large = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        large.save(Path(folder.name) / name)
    source = Pictures(folder.name, S, "crop")
    peer = None
    if b.hf:
        side = {"height": S, "width": S}
        processor = b.hf.CLIPImageProcessor(size={"shortest_edge": S}, crop_size=side)

        def peer() -> None:
            opened = [Image.open(Path(folder.name) / name) for name in names]
            processor(images=opened, return_tensors="pt")

    def ours() -> None:
        source.get(names)
        assert folder  # it lives as long as this function

    return Case(ours, peer, n, "picture")


def batches(b: Bench) -> Case:
    """Making a batch of dialogues: pad, shift the targets, cut into micro-batches."""
    prompts = [b.inputs.prompt() for _ in range(b.size.rows)]
    rows = [make_row((p, False), (b.inputs.text(b.size.answer), True)) for p in prompts]

    def ours() -> None:
        collate(rows, 0, b.size.gpt.block_size).split(min(4, len(rows)))

    return Case(ours, n=1, unit="batch")


CASES = {
    "clip": clip, "lm": lm, "sft": sft, "dpo": dpo,
    "ppo": partial(ppo, peer_of=trl_iteration), "ppo2": partial(ppo, peer_of=trl2_iteration),
    "greedy1": partial(greedy, n=1), "greedy16": partial(greedy, n=16), "sample": sample,
    "pictures": pictures, "batches": batches,
}
TITLES = {
    "clip": "CLIP, a step", "lm": "GPT, a step", "sft": "LLaVA's SFT, a step",
    "dpo": "DPO, a step", "ppo": "PPO, an iteration",
    "ppo2": "PPO, value model of its own", "greedy1": "greedy, 1 row, a token",
    "greedy16": "greedy, 16 rows, a token of each", "sample": "drawn with pictures, a token",
    "pictures": "reading a photograph", "batches": "a batch of dialogues",
}


# --- measuring ---


def make(name: str, cfg: Config, peers: bool) -> Case:
    """Prepare a case: models and inputs, the same whenever the seed is the same."""
    torch.manual_seed(cfg.seed)
    device = pick_device(cfg.device)
    hf = None
    if peers:
        import transformers as hf

        hf.logging.set_verbosity_error()
        hf.logging.disable_progress_bar()
    size = SIZES[cfg.size]
    return CASES[name](Bench(size, Inputs(size, cfg.seed, device), device, cfg, hf))


def peak_of(name: str, cfg: Config, peer: bool) -> float:
    """GB that one side of a case needs at most, packages and inputs included."""
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    case = make(name, cfg, peer)
    side = case.peer if peer else case.ours
    side()
    side()
    return peak_memory("gb", pick_device(cfg.device)).get("gb", 0.0)


def alone(name: str, cfg: Config, peer: bool) -> float:
    """`peak_of` in a fresh process: this one still holds what other cases needed."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, (name, cfg, peer))


def measure(name: str, cfg: Config, peers: bool) -> dict:
    """Time both sides of a case in turn.

    Raises:
        ValueError: if their first losses differ: then they do not do the same work.
    """
    device = pick_device(cfg.device)
    half = is_bfloat16(device, cfg.dtype)
    case = make(name, cfg, peers)
    entry: dict = {"unit": case.unit}
    sides = {"ours": case.ours} | ({"peer": case.peer} if case.peer else {})
    if case.trains:
        with FlopCounterMode(display=False) as counter:
            losses = {"ours": case.ours()}
        entry["gflop"] = counter.get_total_flops() / 1e9
    else:
        losses = {"ours": case.ours()}
    if case.peer:
        losses["peer"] = case.peer()
    if None not in losses.values() and len(losses) == 2:
        if abs(losses["ours"] - losses["peer"]) > (3e-2 if half else 1e-3):
            raise ValueError(f"{name}: the first losses differ, {losses}")
    calls = {}
    for side, do in sides.items():
        calls[side] = max(1, math.ceil(cfg.seconds / seconds_of(do, 1, device)))
    times: dict[str, list[float]] = defaultdict(list)
    rates = []
    for _ in range(cfg.rounds):
        rates.append(matmul_rate(device, torch.bfloat16 if half else torch.float32))
        for side, do in sides.items():
            times[side].append(seconds_of(do, calls[side], device) / case.n)
    rate = statistics.median(rates)
    entry["matmul_gflops"] = rate / 1e9
    for side, values in times.items():
        entry[f"{side}_ms"] = 1000 * statistics.median(values)
    if case.peer:
        ratios = sorted(p / o for o, p in zip(times["ours"], times["peer"]))
        entry |= {"ratio": statistics.median(ratios), "ratio_low": ratios[0],
                  "ratio_high": ratios[-1]}
    if case.trains:
        entry["share"] = 1e9 * entry["gflop"] / statistics.median(times["ours"]) / rate
    return entry


def line(name: str, entry: dict) -> str:
    """What the screen shows of a case."""
    parts = [f"{TITLES[name]:34s} {entry['ours_ms']:9.3f} ms"]
    if "ratio" in entry:
        parts.append(
            f"peer {entry['peer_ms']:9.3f} ms  peer / ours {entry['ratio']:5.2f} "
            f"({entry['ratio_low']:.2f} .. {entry['ratio_high']:.2f})"
        )
    if "share" in entry:
        parts.append(f"{entry['share']:.2f} of {entry['matmul_gflops']:.0f} GFLOP/s")
    if "gb" in entry:
        parts.append(f"{entry['gb']:.1f} GB, peer {entry.get('peer_gb', 0):.1f}")
    return "  ".join(parts)


def main(cfg: Config) -> dict[str, float]:
    """Time the cases, print a line of each, write the file; return the ratios."""
    check(cfg)
    began = time.time()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    peers = cfg.peers and importlib.util.find_spec("transformers") is not None
    if cfg.peers and not peers:
        print("transformers is not installed: only ours is timed; "
              "tests/parity/install.sh installs it")
    out = Path(cfg.out)
    report = json.loads(out.read_text()) if out.is_file() else {}
    old = report.get(cfg.size, {}).get("cases", {})
    cases = {}
    for name in cfg.only.split(",") if cfg.only else CASES:
        entry = measure(name, cfg, peers)
        gc.collect()
        if cfg.memory:
            entry["gb"] = alone(name, cfg, False)
            if "peer_ms" in entry:
                entry["peer_gb"] = alone(name, cfg, True)
        print(line(name, entry), flush=True)
        cases[name] = entry
        # after each case, as a long run may be stopped
        whole = provenance(cfg, began) | {"cases": old | cases}
        out.write_text(json.dumps(report | {cfg.size: whole}, indent=1) + "\n")
    return {name: entry["ratio"] for name, entry in cases.items() if "ratio" in entry}


if __name__ == "__main__":
    cli(main, Config)
