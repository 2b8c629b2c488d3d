"""A table of classes that adapters add rows to."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassRows(nn.Module):
    """A table of classes with the rows of adapters between those of its own classes and that of no class, if it has
    one. It is called as the table is, labels (B,) -> (B, D).

    Args:
        table: the table.
        classes: the number of its own classes.

    Attributes:
        rows: the rows of each adapter by its name, (K, D), in the order of their numbers.
    """

    def __init__(self, table: nn.Embedding, classes: int):
        super().__init__()
        self.table, self.classes, self.rows = table, classes, nn.ParameterDict()

    @property
    def embedding_dim(self) -> int:
        """Return the length D of a row."""
        return self.table.embedding_dim

    @property
    def num_embeddings(self) -> int:
        """Return the number of rows."""
        return self.table.num_embeddings + sum(map(len, self.rows.values()))

    @property
    def weight(self) -> Tensor:
        """Return the whole table, (rows, D)."""
        own = self.table.weight
        return torch.cat([own[: self.classes], *self.rows.values(), own[self.classes :]])

    def plain(self) -> nn.Embedding:
        """Return a table of its own with these rows."""
        weight = self.weight.detach().clone()
        return nn.Embedding(*weight.shape, _weight=weight).requires_grad_(self.table.weight.requires_grad)

    def forward(self, labels: Tensor) -> Tensor:
        """Return the rows (B, D) of labels (B,)."""
        return F.embedding(labels, self.weight)


def class_table(network: nn.Module) -> tuple[str, nn.Embedding | ClassRows] | None:
    """Return the name and the table of classes of a network: that with as many rows as its configuration says.

    None: it has no such table, or several, as networks that add the class in many places have.
    """
    embeds = getattr(getattr(network, "config", None), "num_class_embeds", None)
    parts = dict(network.named_modules())
    inner = {id(part.table) for part in parts.values() if isinstance(part, ClassRows)}
    tables = [
        (name, part)
        for name, part in parts.items()
        if isinstance(part, nn.Embedding | ClassRows) and id(part) not in inner and part.num_embeddings == embeds
    ]
    return tables[0] if len(tables) == 1 else None
