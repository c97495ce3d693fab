"""The connector: maps each patch feature of the ViT to one token embedding of the GPT.

    linear:  img_emb = norm(feats @ W + b)                     LLaVA's map, and a norm
    mlp:     img_emb = norm(gelu(feats @ W1 + b1) @ W2 + b2)   LLaVA-1.5's, and a norm
    llava:   img_emb = gelu(feats @ W1 + b1) @ W2 + b2         LLaVA-1.5 as published

Positions do not mix here, so every image token belongs to one patch.

LLaVA needs no norm: its LLM encodes positions by rotating queries and keys, which works
whatever the size of the embeddings. GPT-2 adds position embeddings to them. Without the
norm, image tokens grew to fifty times the size of the position embeddings, and the GPT
could not tell where a patch was. Use "llava" only to exchange weights with other
implementations.

Source: LLaVA, arXiv:2304.08485, eq. 1; LLaVA-1.5, arXiv:2310.03744.
"""

from torch import Tensor, nn

from minivlm.transformer import init_weights

# standard deviation of image tokens at the start; it lies between those of position
# embeddings and token embeddings after train_lm.py
WORD_SCALE = 0.05


class Projector(nn.Module):
    """Maps patch features to token embeddings, (B, N, Cv) -> (B, N, C).

    Args:
        n_in, n_out: Cv, C.
        kind: "linear", "mlp" or "llava", see above.

    Raises:
        ValueError: if kind is not "linear", "mlp" or "llava".
    """

    def __init__(self, n_in: int, n_out: int, kind: str = "mlp"):
        super().__init__()
        if kind not in ("linear", "mlp", "llava"):
            raise ValueError(f"projector {kind!r} is not one of mlp, linear, llava")
        layers = [nn.Linear(n_in, n_out)]
        if kind != "linear":
            layers += [nn.GELU(), nn.Linear(n_out, n_out)]
        self.net = nn.Sequential(*layers)
        init_weights(self)
        self.norm = nn.Identity()
        if kind != "llava":
            self.norm = nn.LayerNorm(n_out)
            # image tokens start about as large as word embeddings, which the GPT knows
            nn.init.constant_(self.norm.weight, WORD_SCALE)

    def forward(self, feats: Tensor) -> Tensor:
        """Patch features (B, N, Cv) -> token embeddings (B, N, C)."""
        return self.norm(self.net(feats))                            # (B, N, C)
