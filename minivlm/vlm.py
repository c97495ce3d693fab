"""The visual chatbot: ViT -> projector -> image tokens in a GPT's input.

    text       <user> <image><image>...<image> What is this? <assistant> A red car. <end>
    embedding  wte    img_emb[0] ... img_emb[N-1]  wte ...

The chat template writes N placeholders where a picture belongs. The VLM replaces the
embeddings of the placeholders, in order, by the projected patch features.

Source: LLaVA, Liu et al. 2023, arXiv:2304.08485, figure 1.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from minivlm.gpt import GPT, GPTConfig
from minivlm.projector import Projector
from minivlm.vit import ViT, ViTConfig


@dataclass(frozen=True)
class VLMConfig:
    """Sizes of ViT and GPT, the kind of projector, and the id of the placeholder.

    Raises:
        ValueError: if image_id is no id of the GPT's vocabulary.
    """

    image_id: int
    vit: ViTConfig = field(default_factory=ViTConfig)
    gpt: GPTConfig = field(default_factory=GPTConfig)
    projector: str = "mlp"  # scripts pass "placed"
    # True: tokens of the prompt see each other both ways (SimVLM); callers pass `prefix`
    prefix_lm: bool = False

    def __post_init__(self):
        V = self.gpt.vocab_size
        if type(self.image_id) is not int or not 0 <= self.image_id < V:
            raise ValueError(f"image_id {self.image_id!r} is no id of a vocabulary of {V}")

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
        self.projector = self.new_projector()
        self.gpt = GPT(config.gpt)

    def new_projector(self) -> Projector:
        """Make a projector from the ViT to the GPT, with initial weights."""
        vit, gpt = self.config.vit, self.config.gpt
        return Projector(vit.n_embd, gpt.n_embd, self.config.projector, vit.n_tokens)

    def embed(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None
    ) -> Tensor:
        """Embed the tokens, and put the pictures where the placeholders are.

        Args:
            idx: (B, T) ids; N placeholders, one behind the other, stand for each picture.
            images: (n, 3, S, S), the pictures of all rows in order, or None if there are
                none.
            img_emb: (n, N, C), the same pictures already projected, instead of `images`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: if the number of placeholders is not N times the number of pictures,
                or a row holds only a part of a picture.
        """
        pictures = images if img_emb is None else img_emb
        self.images_per_row(idx, 0 if pictures is None else len(pictures))
        emb = self.gpt.embed(idx)                                    # (B, T, C)
        if pictures is None:
            return emb
        if img_emb is None:
            img_emb = self.projector(self.vit.features(images))      # (n, N, C)
        is_placeholder = (idx == self.config.image_id)[..., None]    # (B, T, 1)
        return emb.masked_scatter(is_placeholder, img_emb.to(emb.dtype))

    def images_per_row(self, idx: Tensor, n_images: int) -> Tensor:
        """Count the pictures of each row: ids (B, T) -> (B,).

        Args:
            n_images: how many there are for all rows.

        Raises:
            ValueError: as `embed`.
        """
        N = self.config.vit.n_tokens
        per_row = (idx == self.config.image_id).sum(1)               # (B,)
        # a right total is not enough: one row could hold half a picture, and another 1.5
        if int(per_row.sum()) != n_images * N or bool((per_row % N).any()):
            raise ValueError(
                f"rows hold {per_row.tolist()} image placeholders, but {n_images} pictures "
                f"of {N} tokens make {n_images * N}; render the text with "
                f"n_image_tokens={N} and one <image> for each picture"
            )
        return per_row // N

    def forward(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None,
        **options,
    ) -> Tensor:
        """Return each position's next-token logits: ids (B, T), pictures -> (B, T, V).

        The arguments are those of `embed`. The options `at`, `prefix`, `cache`, `positions`
        and `segments` are those of GPT.hidden; with `at` the logits are (M, V).
        """
        return self.gpt(emb=self.embed(idx, images, img_emb), **options)

    def hidden(
        self, idx: Tensor, images: Tensor | None = None, img_emb: Tensor | None = None,
        **options,
    ) -> Tensor:
        """Return what a head reads, see GPT.hidden: ids (B, T), pictures -> (B, T, C)."""
        return self.gpt.hidden(emb=self.embed(idx, images, img_emb), **options)
