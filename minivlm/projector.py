"""The connector: maps each patch feature of the ViT to one token embedding of the GPT.

    linear:  img_emb = feats @ W + b                     LLaVA,     arXiv:2304.08485, eq. 1
    mlp:     img_emb = gelu(feats @ W1 + b1) @ W2 + b2   LLaVA-1.5, arXiv:2310.03744

Positions do not mix here, so every image token stays the token of its own patch.
"""

from torch import Tensor, nn

from minivlm.transformer import init_weights


class Projector(nn.Module):
    """(B, N, Cv) patch features -> (B, N, C) token embeddings.

    Raises:
        ValueError: if kind is neither "linear" nor "mlp".
    """

    def __init__(self, n_in: int, n_out: int, kind: str = "mlp"):
        super().__init__()
        if kind not in ("linear", "mlp"):
            raise ValueError(f"projector {kind!r} is not one of linear, mlp")
        layers = [nn.Linear(n_in, n_out)]
        if kind == "mlp":
            layers += [nn.GELU(), nn.Linear(n_out, n_out)]
        self.net = nn.Sequential(*layers)
        init_weights(self)

    def forward(self, feats: Tensor) -> Tensor:
        """(B, N, Cv) -> (B, N, C)."""
        return self.net(feats)
