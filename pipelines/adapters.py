"""Low-rank adapters of a pipeline's network (LoRA; Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft:

    W x  ->  W x + sum_i w_i (alpha_i / r_i) B_i A_i x,    A_i (r_i, in), B_i (out, r_i)

The methods have the names and the meaning of diffusers' `LoraBaseMixin`, which needs networks with adapters of their
own; `UNet2DModel` has none.
"""

import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from diffusers.utils.peft_utils import delete_adapter_layers, set_adapter_layers
from torch import Tensor, nn

from hfgen.saving.errors import ADAPTER
from hfgen.utils.arguments import checked

from .adapter_classes import AdapterClassesMixin
from .adapter_file import (
    ADAPTER_CONFIG,
    ADAPTER_FACTS,
    CLASS_ROWS,
    AdapterWeights,
    adapter_file,
    adapter_of,
    check_adapter,
    read_adapter,
)
from .adapter_layers import adapted_layers, inject_factors, stated_config

ADAPTER_NAME = re.compile(r"\w[\w-]*")
"""Names of adapters: torch allows no dots in names of modules."""


class AdapterMixin(AdapterClassesMixin):
    """Low-rank adapters of one network of a pipeline, see `load_lora_weights`."""

    _unfused: Mapping[str, Tensor] | None = None
    """Weights of layers before adapters were fused into them; None: none are."""

    @checked
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        weight_name: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> None:
        """Load an adapter that `hfgen train ... --lora_rank` or diffusers saved, and use it alone, with the weight 1.

        No code is run, and no pickles are read. Classes that the adapter has learnt are added to the pipeline's own,
        with the numbers after them. `set_adapters` changes weights and uses several at once.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file of safetensors, the name of a repository, or the
                tensors themselves by the names that they have in a file.
            adapter_name: the name that it gets here; default: `default_0`, `default_1`, ...
            weight_name: name of its file; default: pytorch_lora_weights.safetensors.
            revision, token, cache_dir, local_files_only, force_download: of a repository, as for `from_pretrained`.

        Raises:
            ValueError: there is no such adapter, it is damaged or pickled, it belongs to another base (another network,
                path or prediction), the name is taken, adapters are fused, or peft is not installed.
            OSError: the Hub can't be reached, and the cache does not hold it.
        """
        self._refuse_fused("load another adapter")
        name = self._new_name(adapter_name)
        source, component = pretrained_model_name_or_path_or_dict, self._lora_loadable_modules[0]
        if isinstance(source, Mapping):
            weights = adapter_of(source, {}, {}, component, "The dictionary")
        else:
            hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
            hub |= {"local_files_only": local_files_only, "force_download": force_download}
            weights = read_adapter(adapter_file(source, weight_name, hub), component)
        check_adapter(weights, self._adapted, getattr(self, "scheduler", None), self._names())
        self._inject(weights, name)
        self.set_adapters(name)
        config = getattr(getattr(self, "scheduler", None), "config", {})
        if config.get("data_variances") is not None or getattr(self, "variance_head", None) is not None:
            logging.getLogger(__name__).warning("The variances of reverse steps are measured for the base, not for it.")

    def _inject(self, weights: AdapterWeights, name: str) -> None:
        """Add the factors and classes of an adapter that fits."""
        network, ranks = self._adapted, {layer: len(first) for layer, (first, _) in weights.factors.items()}
        first = next(iter(ranks.values()))
        patterns = {f"^{re.escape(layer)}$": rank for layer, rank in ranks.items() if rank != first}
        alphas = {} if weights.alpha is not None else dict(patterns)
        alpha = first if weights.alpha is None else weights.alpha
        more = {"rank_pattern": patterns, "alpha_pattern": alphas, "base_model_name_or_path": weights.facts.get("base")}
        learns = {key: parameter.requires_grad for key, parameter in network.named_parameters()}
        inject_factors(network, list(ranks), first, alpha, name, **more)
        for key, parameter in network.named_parameters():  # torch chooses kernels by it, and so the last bits
            parameter.requires_grad_(learns.get(key.replace(".base_layer.", "."), False))
        for layer, pair in weights.factors.items():
            part = network.get_submodule(layer)
            for held, values in zip((part.lora_A, part.lora_B), pair, strict=True):
                held[name].weight.data.copy_(values)
        if weights.rows is not None:
            self._add_classes(name, weights.rows, weights.facts["classes"])
        network.eval()

    @checked
    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Use these adapters from now on and no others: the sum of their changes, each times its weight.

        Args:
            adapter_names: of one adapter or of several.
            adapter_weights: of all, or of each; default: 1. Classes of an adapter are the same whatever its weight.

        Raises:
            ValueError: there is no such adapter, a name comes twice, a weight is not finite, the counts differ, or
                adapters are fused.
        """
        self._refuse_fused("set adapters")
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        several = isinstance(adapter_weights, Sequence)
        scales = (
            list(adapter_weights) if several else [1.0 if adapter_weights is None else adapter_weights] * len(names)
        )
        self._check_names(names)
        if len(scales) != len(names):
            raise ValueError(f"{len(names)} adapter_names and {len(scales)} adapter_weights do not go together.")
        for scale in scales:
            if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
                raise ValueError(f"adapter_weights={scale!r} must be finite numbers.")
        set_adapter_layers(self._adapted, enabled=True)
        for layer in adapted_layers(self._adapted).values():
            layer.set_adapter(names, inference_mode=True)
            for name, scale in zip(names, scales, strict=True):
                layer.set_scale(name, scale)

    @checked
    def disable_lora(self) -> None:
        """Use the base alone, with the very bits of its outputs. `enable_lora` uses the adapters again."""
        self._refuse_fused("turn adapters off")
        set_adapter_layers(self._adapted, enabled=False)

    @checked
    def enable_lora(self) -> None:
        """Use the adapters again that were in use before `disable_lora`."""
        self._refuse_fused("turn adapters on")
        set_adapter_layers(self._adapted, enabled=True)
        for layer in adapted_layers(self._adapted).values():
            layer.set_adapter(layer.active_adapters, inference_mode=True)

    @checked
    def get_active_adapters(self) -> list[str]:
        """Return the names of the adapters in use, [] without any."""
        for layer in adapted_layers(self._adapted).values():
            return [] if layer.disable_adapters else list(layer.active_adapters)
        return []

    @checked
    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of all adapters by the component that has them."""
        names = list(getattr(self._adapted, "peft_config", {}))
        return {self._lora_loadable_modules[0]: names} if names else {}

    @checked
    def fuse_lora(self, lora_scale: float = 1.0, adapter_names: Sequence[str] | None = None) -> None:
        """Add the changes of the adapters in use to the weights, so that they cost nothing: W + sum_i w_i B_i A_i.

        The weights before are kept in memory, and `unfuse_lora` puts these bits back. To save a pipeline with the
        adapters in its weights: `fuse_lora()`, `unload_lora_weights()`, `save_pretrained(...)`.

        Args:
            lora_scale: a factor of all changes.
            adapter_names: of the adapters in use that are fused, with the weights that they have; the others have no
                effect until `unfuse_lora`. Default: all.

        Raises:
            ValueError: no adapters are in use, others are fused, or the sum is not finite.
        """
        self._refuse_fused("fuse others")
        active = self.get_active_adapters()
        if not active:
            raise ValueError("No adapters are in use. Call set_adapters or enable_lora first.")
        names = active if adapter_names is None else list(adapter_names)
        self._check_names(names)
        if idle := [name for name in names if name not in active]:
            raise ValueError(f"The adapter {idle[0]!r} is not in use. Call set_adapters or enable_lora first.")
        if not math.isfinite(lora_scale):
            raise ValueError(f"lora_scale={lora_scale} must be a finite number.")
        layers = adapted_layers(self._adapted)
        self._unfused = {key: layer.get_base_layer().weight.detach().clone() for key, layer in layers.items()}
        try:
            for layer in layers.values():
                _merge(layer, [name for name in names if name in layer.lora_A], lora_scale)
        except ValueError as error:
            self.unfuse_lora()
            raise ValueError(f"{', '.join(names)} can't be fused: weights would not be finite.") from error

    @checked
    def unfuse_lora(self) -> None:
        """Put back the weights from before `fuse_lora`, bit for bit.

        Raises:
            ValueError: no adapters are fused.
        """
        if self._unfused is None:
            raise ValueError("No adapters are fused. Call fuse_lora first.")
        for name, layer in adapted_layers(self._adapted).items():
            layer.get_base_layer().weight.data = self._unfused[name].to(layer.get_base_layer().weight)
            layer.merged_adapters.clear()
        self._unfused = None

    @property
    def fused_loras(self) -> set[str]:
        """Return the names of the adapters that are fused."""
        return {name for layer in adapted_layers(self._adapted).values() for name in layer.merged_adapters}

    @property
    def num_fused_loras(self) -> int:
        """Return the number of adapters that are fused."""
        return len(self.fused_loras)

    @checked
    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget adapters and their classes; classes of other adapters after them get lower numbers.

        Raises:
            ValueError: there is no such adapter, or adapters are fused.
        """
        self._refuse_fused("delete adapters")
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_names(names)
        kept = [name for name in self.get_list_adapters()[self._lora_loadable_modules[0]] if name not in names]
        if not kept:
            self.unload_lora_weights()
            return
        chosen = next(iter(adapted_layers(self._adapted).values())).active_adapters  # also while they are off
        active = [name for name in chosen if name in kept]
        for name in names:
            delete_adapter_layers(self._adapted, name)
            self._adapted.peft_config.pop(name, None)
        self._keep_classes(kept)
        for layer in adapted_layers(self._adapted).values():
            layer.set_adapter(active, inference_mode=True)

    @checked
    def unload_lora_weights(self) -> None:
        """Forget all adapters with their classes. What is fused stays in the weights, with the classes of what is
        fused; without `fuse_lora` the network has the very bits of the base. Without adapters nothing happens."""
        fused = self.fused_loras
        for name, layer in adapted_layers(self._adapted).items():
            self._adapted.set_submodule(name, layer.get_base_layer())
        self._keep_classes([name for name in getattr(self._adapted, "peft_config", {}) if name in fused])
        self._put_back_table()
        if hasattr(self._adapted, "peft_config"):
            del self._adapted.peft_config
        self._unfused = None

    @checked
    def save_lora_weights(self, save_directory: str | os.PathLike, adapter_name: str | None = None) -> None:
        """Write an adapter as diffusers does: pytorch_lora_weights.safetensors, with rank, alpha and layers in its
        header; beside them the base, its path, and the names of the adapter's own classes.

        Args:
            save_directory: the folder, which is made if there is none.
            adapter_name: of the adapter; default: the only one in use.

        Raises:
            ValueError: there is no such adapter, or several are in use.
            OSError: the folder can't be written.
        """
        from safetensors.torch import save

        active = self.get_active_adapters()
        if adapter_name is None and len(active) != 1:
            raise ValueError(f"adapter_name is needed: {len(active)} adapters are in use ({', '.join(active)}).")
        tensors, header = self._lora_state(adapter_name or active[0])
        file, draft = (pathlib.Path(save_directory, name) for name in (ADAPTER, f".{ADAPTER}.part"))
        pathlib.Path(save_directory).mkdir(parents=True, exist_ok=True)
        content = save(tensors, {"format": "pt", **{key: json.dumps(value) for key, value in header.items()}})
        with open(draft, "wb") as written:
            written.write(_in_order(content))
            os.fsync(written.fileno())
        draft.replace(file)

    def _lora_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors of an adapter by the names that they have in a file, and the entries of its header."""
        self._check_names([name])
        start, network = f"{self._lora_loadable_modules[0]}.", self._adapted
        layers = {layer: part for layer, part in adapted_layers(network).items() if name in part.lora_A}
        tensors = {f"{start}{layer}.lora_A.weight": part.lora_A[name].weight for layer, part in layers.items()}
        tensors |= {f"{start}{layer}.lora_B.weight": part.lora_B[name].weight for layer, part in layers.items()}
        config, settings = stated_config(network, name), getattr(getattr(self, "scheduler", None), "config", {})
        facts = {"base": config.pop("base_model_name_or_path", None), "network": type(network).__name__}
        facts |= {key: settings.get(key) for key in ("path", "prediction_type")}
        rows, names = self._classes_of(name)
        if rows is not None:
            tensors[start + CLASS_ROWS], facts["classes"] = rows, names
        header = {start + key: value for key, value in {**config, "target_modules": sorted(layers)}.items()}
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        return tensors, {ADAPTER_CONFIG: header, ADAPTER_FACTS: facts}

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the pipeline as its base class does.

        Raises:
            ValueError: it has adapters, which this folder has no place for; says what to do.
        """
        if names := [name for each in self.get_list_adapters().values() for name in each]:
            raise ValueError(
                f"The pipeline has adapters ({', '.join(names)}), which are saved by themselves: save_lora_weights. To "
                "save their changes within the weights, call fuse_lora() and unload_lora_weights() first; to save the "
                "base alone, unload_lora_weights()."
            )
        super().save_pretrained(save_directory, **kwargs)

    def _refuse_fused(self, purpose: str) -> None:
        if self._unfused is not None:
            raise ValueError(
                f"Adapters are fused ({', '.join(sorted(self.fused_loras))}). To {purpose}, call unfuse_lora() first."
            )

    def _check_names(self, names: list[str]) -> None:
        """Raise ValueError for no names, one that is no adapter's, or one that comes twice."""
        known = [name for each in self.get_list_adapters().values() for name in each]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"There is no adapter {unknown[0]!r}. There are: {', '.join(known) or 'none'}.")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"adapter_names={names} must be names of adapters, each once.")

    def _new_name(self, name: str | None) -> str:
        """Return the name of a new adapter. Raises ValueError for one that is taken or can't be one."""
        known = [name for each in self.get_list_adapters().values() for name in each]
        if name is None:
            return next(f"default_{i}" for i in range(len(known) + 1) if f"default_{i}" not in known)
        if not ADAPTER_NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
            raise ValueError(f"adapter_name={name!r} must be of letters, digits, _ and -, and no word of torch's.")
        if name in known:
            raise ValueError(f"There is an adapter {name!r} already. Give another adapter_name, or delete_adapters.")
        return name


def _merge(layer: Any, names: list[str], scale: float) -> None:
    """Add the changes of adapters, times `scale`, to the weights of a layer. Raises ValueError if these would not be
    finite."""
    before = dict(layer.scaling)
    layer.scaling.update({name: before[name] * scale for name in names})
    try:
        if names:
            layer.merge(safe_merge=True, adapter_names=names)
    finally:
        layer.scaling.update(before)


def _in_order(content: bytes) -> bytes:
    """Return a file of safetensors with the entries of its header in order, so that the same adapter is the same
    bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[end:]
