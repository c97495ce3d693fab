"""The visual chatbot: ViT -> projector -> image tokens in a GPT's input.

    text       <user> <image><image>...<image> What is this? <assistant> A red circle. <end>
    embedding  wte    img_emb[0] ... img_emb[N-1]  wte ...

The chat template puts N copies of one placeholder id where the picture belongs; here their
embeddings are replaced, in order, by the projected patches.

Source: LLaVA, Liu et al. 2023, arXiv:2304.08485, figure 1. Used by: train_align.py and all
behind it.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from minivlm.cache import KVCache
from minivlm.gpt import GPT, GPTConfig
from minivlm.projector import Projector
from minivlm.vit import ViT, ViTConfig


@dataclass(frozen=True)
class VLMConfig:
    """Sizes of both halves, the connector's kind, and the id that stands for one image token."""

    image_id: int
    vit: ViTConfig = field(default_factory=ViTConfig)
    gpt: GPTConfig = field(default_factory=GPTConfig)
    projector: str = "mlp"
    prefix_lm: bool = False  # the prompt, picture included, sees itself both ways (SimVLM)

    def __post_init__(self):
        if type(self.image_id) is not int or not 0 <= self.image_id < self.gpt.vocab_size:
            raise ValueError(
                f"image_id {self.image_id!r} is no id of a vocabulary of {self.gpt.vocab_size}"
            )

    @classmethod
    def from_dict(cls, d: dict) -> "VLMConfig":
        """Rebuild the config from the plain dicts of a checkpoint."""
        return cls(**(d | {"vit": ViTConfig(**d["vit"]), "gpt": GPTConfig(**d["gpt"])}))


class VLM(nn.Module):
    """A GPT that reads pictures."""

    def __init__(self, config: VLMConfig):
        super().__init__()
        self.config = config
        self.vit = ViT(config.vit)
        self.projector = Projector(config.vit.n_embd, config.gpt.n_embd, config.projector)
        self.gpt = GPT(config.gpt)

    def embed(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None
    ) -> Tensor:
        """Token embeddings with the pictures spliced in.

        Args:
            idx: (B, T) ids; each picture is N consecutive copies of `image_id`.
            images: (n, 3, S, S), all rows' pictures in order, or None if no row has one; or else
            img_emb: (n, N, C), the same pictures projected already.

        Returns:
            (B, T, C).

        Raises:
            ValueError: if the placeholders do not fit the pictures, with both numbers.
        """
        here = idx == self.config.image_id                           # (B, T)
        pictures = images if img_emb is None else img_emb
        N, n_images = self.config.vit.n_tokens, 0 if pictures is None else len(pictures)
        per_row = here.sum(1)                                        # (B,)
        if int(per_row.sum()) != n_images * N or bool((per_row % N).any()):
            raise ValueError(
                f"rows hold {per_row.tolist()} image placeholders, but {n_images} pictures of {N} "
                f"tokens make {n_images * N}; render the text with n_image_tokens={N} and one "
                "<image> a picture"
            )
        emb = self.gpt.wte(idx)                                      # (B, T, C)
        if pictures is None:
            return emb
        if img_emb is None:
            img_emb = self.projector(self.vit.features(images))      # (n, N, C)
        return emb.masked_scatter(here[..., None], img_emb.to(emb.dtype))

    def forward(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None, **options
    ) -> Tensor:
        """Score the next token at every position: (B, T) ids and pictures -> (B, T, V) logits.

        `at`, `prefix`, `cache`, `positions` and `segments` are those of GPT.hidden.
        """
        return self.gpt(emb=self.embed(idx, images, img_emb), **options)

    def hidden(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None, **options
    ) -> Tensor:
        """What a head reads, as GPT.hidden: (B, T) ids and pictures -> (B, T, C)."""
        return self.gpt.hidden(emb=self.embed(idx, images, img_emb), **options)

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for `batch` rows of at most `max_len` positions."""
        return self.gpt.new_cache(batch, max_len)


