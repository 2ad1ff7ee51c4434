"""embedding/cpu: rows of the embedding matrix, dequantised as they are looked up."""

import torch

from ktransformers import _core
from ktransformers.operators.base import Operator


class Embedding(Operator):
    """Replaces nn.Embedding. ids: integers [...] -> float32 [..., hidden_size].

    The blocks stay in the file's mapping: a token reads one row of them.
    """

    def __init__(self, module, name, engine, config, options):
        super().__init__(module, name, engine, config, options)
        self.num_embeddings, self.embedding_dim = module.num_embeddings, module.embedding_dim

    @property
    def weight(self) -> torch.Tensor:
        """The dequantised matrix, made anew at each access: for inspection."""
        shape = (self.num_embeddings, self.embedding_dim)
        return torch.from_numpy(self._weights.floats(f"{self.name}.weight", shape))

    def load(self, weights) -> None:
        self._weights = weights
        blocks = weights.matrix(f"{self.name}.weight", self.num_embeddings, self.embedding_dim)
        self.core = _core.Embedding(blocks.data, blocks.format, blocks.rows, blocks.cols)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.core.forward(ids.reshape(-1).to(torch.int32).numpy())
        return torch.from_numpy(rows).reshape(*ids.shape, self.embedding_dim)
