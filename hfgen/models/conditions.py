"""Conditions: the inputs of a network besides the sample and the time step.

A condition turns a batch into keyword arguments of the network and has a null value for each of them. Training replaces
a share of the arguments by their null value, and sampling guides by the difference between the two (Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598). Both use the methods below, so they agree on what "no condition" means.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Integral

import torch
from torch import Tensor, nn

from ..utils.arguments import checked


class Condition(ABC):
    """Base of all conditions. A subclass defines `kwargs` and `null`."""

    @abstractmethod
    def kwargs(self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return the network's keyword arguments for a batch.

        Args:
            batch: tensors (B, ...) by name.
            networks: the networks of the run by name, for a condition that a frozen encoder computes.

        Returns:
            Tensors (B, ...) by the name of the argument.

        Raises:
            ValueError: the batch lacks a tensor that the condition needs.
        """

    @abstractmethod
    def null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the null values for these keyword arguments, each of the same shape and dtype."""

    def dropped(self, kwargs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Replace the arguments of some samples by their null values.

        Args:
            kwargs: what `kwargs` returned.
            rows (B,): a bool mask of the samples whose condition is dropped.
        """
        null = self.null(kwargs)
        masks = {name: rows.to(value.device).reshape(-1, *[1] * (value.ndim - 1)) for name, value in kwargs.items()}
        return {name: torch.where(masks[name], null[name], value) for name, value in kwargs.items()}

    def with_null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return arguments (2 B, ...) for one guided forward pass: the given ones, then the null values."""
        null = self.null(kwargs)
        return {name: torch.cat([value, null[name]]) for name, value in kwargs.items()}


class ClassCondition(Condition):
    """A class label for each sample, as the argument `class_labels` (B,).

    The null label is `num_classes`, one more than the last class. The network therefore needs an embedding of
    `num_classes` + 1 rows if labels are dropped or guided.

    Args:
        num_classes: number of classes, at least 1.
    """

    @checked
    def __init__(self, num_classes: int):
        if isinstance(num_classes, bool) or not isinstance(num_classes, Integral) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r} must be a whole number, at least 1.")
        self.num_classes = num_classes

    def kwargs(self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return `class_labels` (B,) from the batch's "labels" (B,). A missing label, -1, is the null label."""
        if "labels" not in batch:
            raise ValueError(
                "The model is class-conditional but the data have no labels; name the column: --label_column"
            )
        labels = batch["labels"]
        return {"class_labels": labels.where(labels >= 0, self.num_classes)}

    def null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the null label for each sample."""
        return {name: torch.full_like(value, self.num_classes) for name, value in kwargs.items()}


class TensorCondition(Condition):
    """A tensor of the batch, given to the network as it is: an observation, a low-resolution image, an embedding.

    The null value is zero everywhere.

    Args:
        argument: name of the network's keyword argument.
        key: name of the tensor (B, ...) in the batch; default: the same as `argument`.
    """

    @checked
    def __init__(self, argument: str, key: str | None = None):
        self.argument, self.key = argument, key or argument

    def kwargs(self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return the tensor by the name of its argument."""
        if self.key not in batch:
            raise ValueError(f"The batch has no {self.key!r}, only {', '.join(batch)}. Add it to the data set.")
        return {self.argument: batch[self.key]}

    def null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros."""
        return {name: torch.zeros_like(value) for name, value in kwargs.items()}


class CaptionCondition(Condition):
    """The captions of images, from tables of what a network is told of each of M captions: token ids, or the states of
    a text encoder, which are computed once.

    The batch holds "captions" (B,), numbers of captions.

    Args:
        tables: tensors (M, ...) by the name of the network's argument; {} where only null values are asked for.
        null: tensors (1, ...), or (B, ...) for batches of B alone, by the same names: those of the empty text, or of
            negative prompts.

    Raises:
        ValueError: tables and null values have other names, or other shapes.
    """

    @checked
    def __init__(self, tables: Mapping[str, Tensor], null: Mapping[str, Tensor]):
        shapes = [{name: tuple(value.shape[1:]) for name, value in values.items()} for values in (tables, null)]
        if tables and shapes[0] != shapes[1]:
            raise ValueError(f"tables of items {shapes[0]} and null values {shapes[1]} do not go together.")
        self.tables, self.null_values = dict(tables), dict(null)

    def kwargs(self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return the rows (B, ...) of the tables. Raises ValueError for a batch without captions."""
        if "captions" not in batch:
            raise ValueError(f'The batch has no "captions", only {", ".join(batch)}. Load the images with captions.')
        rows = batch["captions"]
        return {name: table[rows.to(table.device)].to(rows.device) for name, table in self.tables.items()}

    def null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the null values, one row for each of the B rows of the arguments."""
        return {
            name: self.null_values[name].to(value).expand(len(value), *value.shape[1:])
            for name, value in kwargs.items()
        }


class TextCondition(Condition):
    """Token ids, encoded by a frozen text encoder of `transformers`, as `encoder_hidden_states` (B, L, D) and
    `encoder_attention_mask` (B, L): the arguments of diffusers' networks with cross-attention.

    The batch holds "input_ids" (B, L) and, optionally, "attention_mask" (B, L), as a tokenizer of `transformers` makes
    them. The null value is a sequence of zeros of which the first position is attended to.

    Args:
        encoder: name of the text encoder among the networks.
    """

    @checked
    def __init__(self, encoder: str = "text_encoder"):
        self.encoder = encoder
        self._checked: int | None = None  # the encoder whose tokens were looked at on a device

    def kwargs(self, batch: Mapping[str, Tensor], networks: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return the hidden states and the mask.

        Raises:
            ValueError: the tokens or the encoder are missing, or the encoder has no such tokens, or takes fewer.
        """
        if "input_ids" not in batch or self.encoder not in (networks or {}):
            raise ValueError(
                f'TextCondition needs "input_ids" in the batch (it has {", ".join(batch)}) and {self.encoder!r} among '
                f"the networks ({', '.join(networks or {}) or 'none'})."
            )
        tokens = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(tokens))
        self._check(tokens, networks[self.encoder])
        with torch.no_grad():
            states = networks[self.encoder](input_ids=tokens, attention_mask=mask).last_hidden_state
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _check(self, tokens: Tensor, encoder: nn.Module) -> None:
        """Raise ValueError for tokens that the encoder does not have, or more of them than it takes.

        On another device than the CPU, their values are looked at in the first batch alone: the CPU waits for them.
        """
        sizes = {"max_position_embeddings": tokens.shape[-1]}
        if tokens.numel() and (tokens.device.type == "cpu" or self._checked != id(encoder)):
            sizes["vocab_size"] = int(tokens.max()) + 1
            self._checked = id(encoder)
        for name, value in sizes.items():
            if value > (limit := getattr(getattr(encoder, "config", None), name, None) or value):
                raise ValueError(f"The tokenizer makes tokens for {name}={value}, and the text encoder has {limit}.")

    def null(self, kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return zeros, and a mask of the first position alone."""
        mask = torch.zeros_like(kwargs["encoder_attention_mask"])
        mask[:, 0] = 1
        return {
            "encoder_hidden_states": torch.zeros_like(kwargs["encoder_hidden_states"]),
            "encoder_attention_mask": mask,
        }
