"""The revision of a pipeline: a name for what it computes."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch

from ..utils.arguments import checked


@checked
def revision_of(pipeline: Any) -> str:
    """Return 16 hexadecimal digits of a digest of a pipeline: its class, its configuration, and the weights and
    configuration of its components, adapters included.

    The same weights have the same revision on every machine, wherever they were loaded from. A component that draws
    nothing, and is therefore loaded only where it is asked for, such as the discriminator of a GAN, does not count.
    """
    digest = hashlib.blake2b(digest_size=8)
    optional, loaded = (getattr(pipeline, name, ()) for name in ("_optional_components", "_loaded_components"))
    idle = {name for name in pipeline.components if name in optional and name not in loaded}
    config = {name: (None, None) if name in idle else value for name, value in _plain(pipeline.config).items()}
    _add(digest, [type(pipeline).__name__, config])
    for name, component in sorted(pipeline.components.items()):
        component = None if name in idle else component
        vocabulary = sorted(component.get_vocab().items()) if hasattr(component, "get_vocab") else None
        _add(digest, [name, type(component).__name__, _plain(getattr(component, "config", None)), vocabulary])
        if isinstance(component, torch.nn.Module):
            for key, value in sorted(component.state_dict().items()):
                for part in plain_tensors(value.detach()):
                    _add(digest, [key, str(part.dtype), list(part.shape)])
                    digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _add(digest: Any, values: Any) -> None:
    digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\0")


def plain_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield a tensor, or the tensors in one of another class, such as rounded weights and their scales."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(value, name))
    else:
        yield value


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration without private entries, such as the folder that it comes from."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    return {str(key): value for key, value in values.items() if not str(key).startswith("_")}
