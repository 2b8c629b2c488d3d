"""Base of all pipelines: loading that runs no code, saving in a form that loads without hfgen, pushing to the Hub."""

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from hfgen.console.notes import legible_logs
from hfgen.console.progress import without_loading_bars
from hfgen.disk.files import write_text
from hfgen.disk.saves import replacing_files
from hfgen.registry import PIPELINES, SAMPLERS_BY, resolve, sampler
from hfgen.saving import hub
from hfgen.saving import load as loading
from hfgen.saving.errors import INDEX, value_errors
from hfgen.saving.option_types import check_option_types
from hfgen.saving.save import make_portable, remove_former_sources
from hfgen.saving.saved import SAVE, whole
from hfgen.schedulers.chain import chain_facts
from hfgen.schedulers.configuration import network_facts
from hfgen.utils.arguments import checked

from .parts import PipelineOutput, PipelineParts

__all__ = ["HFGenPipeline", "PipelineOutput"]

HUB_OPTIONS = {"revision": None, "token": None, "cache_dir": None, "local_files_only": False, "force_download": False}
"""Options of huggingface_hub when a pipeline is loaded from a repository, and their defaults."""

PLAIN = str | int | float | bool | None
TRAINING_DATA = "_training_data"
"""Entry of model_index.json that says what the pipeline was trained on; diffusers leaves such names alone."""


class HFGenPipeline(PipelineParts, DiffusionPipeline):
    """Base of all pipelines. `HFGenPipeline.from_pretrained(folder or repository)` returns the pipeline of the family.

    Class names are looked up in `hfgen.registry`. No code from the folder is fetched or imported, and no option allows
    it.
    """

    _loaded_components: tuple[str, ...] = ()
    """Optional components that are loaded wherever they were saved; others only with True under their names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "HFGenPipeline":
        """Load a pipeline that `save_pretrained` wrote, from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: the folder, or the name of a repository.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for a repository. Others are
                diffusers': `torch_dtype`, `variant`, and components by name in place of the saved ones. An optional
                component is loaded only with True under its name: `discriminator=True`.

        Raises:
            ValueError: there is no such folder, repository or revision, it is not a sound pipeline of a family that
                hfgen knows, or an option would run code.
            OSError: a file is missing, or the Hub can't be reached and the cache does not hold the revision.
        """
        for name in ("custom_pipeline", "trust_remote_code", "custom_revision"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} would run code from the folder, which hfgen never does. Leave it out.")
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would read pickled weights, which hfgen never does. Leave it out.")
        source = str(pretrained_model_name_or_path)
        hub_options = {key: kwargs.pop(key, default) for key, default in HUB_OPTIONS.items()}
        with whole(source) as place:
            pipeline = cls._load(place, source, hub_options, kwargs)
        pipeline.register_to_config(_name_or_path=source)
        return pipeline

    @classmethod
    def _load(cls, place: str, source: str, hub_options: dict[str, Any], kwargs: dict[str, Any]) -> "HFGenPipeline":
        """Load the pipeline at `place`, a folder or the name of a repository, which messages call `source`."""
        folder, index = loading.read_index(place, hub_options)
        family, variant = loading.pipeline_class(index, source, cls), kwargs.get("variant")
        classes = loading.component_classes(family, index, source, kwargs)
        if not os.path.isdir(place):
            folder = loading.fetch(place, folder.name, classes, variant, hub_options)
        with value_errors(source), legible_logs():
            check_option_types(folder / INDEX, index, family)
            loading.check(folder, classes, variant)
            with loading.without_code(folder, classes) as links, without_loading_bars():
                pipeline = super(HFGenPipeline, family).from_pretrained(links, **kwargs)
            if index.get(TRAINING_DATA) is not None:
                pipeline.training_data = index[TRAINING_DATA]
        return pipeline

    @property
    def training_data(self) -> dict[str, Any] | None:
        """The record of the data that the pipeline was trained on, as `hfgen.data.training_data.record_of` makes it.

        It is saved and pushed with the pipeline. None if nothing is known.
        """
        return self.config.get(TRAINING_DATA)

    @training_data.setter
    def training_data(self, record: Mapping[str, Any]) -> None:
        if not isinstance(record, Mapping) or not all(isinstance(value, PLAIN) for value in record.values()):
            raise ValueError(f"training_data={record!r} must be texts, numbers, truth values or None by name.")
        self.register_to_config(**{TRAINING_DATA: dict(record)})

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch a repository's pipeline, without code and pickles, and return its folder.

        Args:
            pretrained_model_name: the repository.
            kwargs: options of `from_pretrained` for a repository, `variant`, and True under the names of optional
                components.

        Raises:
            ValueError, OSError: as `from_pretrained`.
        """
        hub_options = {key: kwargs.pop(key, default) for key, default in HUB_OPTIONS.items()}
        variant = kwargs.pop("variant", None)
        if unknown := [key for key, value in kwargs.items() if value is not True]:
            raise ValueError(
                f"download does not take {', '.join(unknown)}. It takes {', '.join(HUB_OPTIONS)}, variant."
            )
        folder, index = loading.read_index(pretrained_model_name, hub_options)
        family = loading.pipeline_class(index, pretrained_model_name, cls)
        classes = loading.component_classes(family, index, pretrained_model_name, kwargs)
        return str(loading.fetch(pretrained_model_name, folder.name, classes, variant, hub_options))

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        return loading.with_our_classes(super()._dict_from_json_file(json_file))  # diffusers reads every index here

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the pipeline's folder: an index, weights (safetensors) and configuration of each component.

        Source files of our classes are written beside them. Plain diffusers loads the folder with these where hfgen is
        not installed. All files are written beside the former ones before the first one is replaced, and no reader gets
        files of two saves: see `hfgen.disk.saves`.

        Args:
            save_directory: the folder.
            push_to_hub: also push the folder, by `hfgen.saving.hub.push`: `repo_id` (default: the folder's name),
                `private`, `token`, `revision`, `create_pr`, `commit_message`.
            kwargs: as diffusers': `variant`, `max_shard_size`.

        Raises:
            ValueError: pickles are requested, or the push is refused.
            OSError: the folder can't be written; a pipeline that was there is untouched.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError("safe_serialization=False would write pickles, which hfgen never reads. Leave it out.")
        names = ("private", "token", "revision", "create_pr", "commit_message")
        push_options = {name: kwargs.pop(name) for name in names if name in kwargs}
        repo = kwargs.pop("repo_id", None)
        with replacing_files(Path(save_directory), SAVE, last=INDEX) as draft:
            with without_loading_bars():
                super().save_pretrained(draft, **kwargs)
            self._save_scheduler_defaults(draft)
            make_portable(draft, self.components)
        remove_former_sources(Path(save_directory), self.components)
        if push_to_hub:
            hub.push(Path(save_directory), repo, **push_options)

    def _save_scheduler_defaults(self, folder: Path) -> None:
        """Add to the configuration of a scheduler of diffusers which options were left at their defaults.

        diffusers reads this record but does not write it, so that after loading every option would count as set.
        """
        config, file = (
            getattr(self.components.get("scheduler"), "config", {}),
            folder / "scheduler/scheduler_config.json",
        )
        if config.get("_use_default_values"):
            saved = json.loads(file.read_text())
            saved["_use_default_values"] = sorted(config["_use_default_values"])
            write_text(file, json.dumps(saved, indent=2, sort_keys=True) + "\n")

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Push the pipeline to the Hub, and return the repository's address. The repository's card is not changed.

        Args:
            repo_id: the repository; it is made if there is none.
            kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message`; `variant`, `max_shard_size`.

        Raises:
            ValueError, OSError: as `hfgen.saving.hub.push`.
        """
        save_options = {name: kwargs.pop(name) for name in ("variant", "max_shard_size") if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_options)
            return hub.push(Path(folder), repo_id, **kwargs)

    @classmethod
    def call_with(cls, **options: Any) -> dict[str, Any]:
        """Return the options that are not None, as arguments of a call.

        Raises:
            ValueError: a call of this family has no such argument; names the families whose calls have it.
        """
        arguments = {name: value for name, value in options.items() if value is not None}
        for name, value in arguments.items():
            if name not in inspect.signature(cls.__call__).parameters:
                calls = {family: inspect.signature(resolve(family).__call__) for family in PIPELINES}
                families = ", ".join(family for family, call in calls.items() if name in call.parameters)
                others = f", only {families}" if families else ", and no other family does"
                raise ValueError(f"{cls.__name__} takes no {name} ({value} given){others}. Leave it out.")
        return arguments

    @checked
    def use_scheduler(self, name: str, **options: Any) -> None:
        """Sample with another of hfgen's schedulers from now on: `use_scheduler("dpmsolver++", solver_order=3)`.

        The path, the prediction kind and the time shift belong to the network and stay. To use a scheduler of
        diffusers: `pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)`. For one call
        alone, give the call a `scheduler`.

        Args:
            name: a key of `hfgen.registry.SAMPLERS`; for energies of `ENERGY_SAMPLERS`.
            options: of the scheduler's class.

        Raises:
            ValueError: an unknown name or option, this family has no scheduler, or the present scheduler's
                configuration states no path that hfgen knows.
        """
        if "scheduler" not in self.components:
            raise ValueError(
                f"{type(self).__name__} draws without a scheduler, so {name!r} can't be used. Leave it out."
            )
        self.scheduler = self.named_scheduler(name, self.scheduler, **options)

    @checked
    def named_scheduler(self, name: str, model: Any, **options: Any) -> Any:
        """Return one of hfgen's schedulers for the network of another.

        Args:
            name: a key of `hfgen.registry.SAMPLERS`; for energies of `ENERGY_SAMPLERS`.
            model: the scheduler whose path, prediction kind and time shift it gets; for energies, whose first noise,
                step size and temperature.
            options: of the scheduler's class.

        Raises:
            ValueError: as `use_scheduler`.
        """
        cls, preset = sampler(name, SAMPLERS_BY[self.samples_by])
        cls = resolve(cls)
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        if unknown := [option for option in options if option not in names]:
            raise ValueError(f"{name!r} has no option {', '.join(unknown)}. It has: {', '.join(names)}.")
        facts = network_facts(model.config) if "path" in names else chain_facts(model)
        return cls.from_config({**facts, **preset}, **options)
