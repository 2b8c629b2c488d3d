"""The front door to every saved model: loading that runs no code, saving that needs no hfgen to load, pushing."""

import inspect
import os
import tempfile
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin

from hfgen.registry import PIPELINES, resolve, sampler
from hfgen.saving import hub
from hfgen.saving import load as loading
from hfgen.saving.errors import refusing
from hfgen.saving.folders import check_network, read_json
from hfgen.saving.save import make_portable
from hfgen.schedulers.solver import NETWORK_FACTS

from .parts import PipelineOutput, PipelineParts

__all__ = ["HFGenPipeline", "PipelineOutput"]

HUB_OPTIONS = {"revision": None, "token": None, "cache_dir": None, "local_files_only": False, "force_download": False}
"""What huggingface_hub is told when a pipeline is loaded from a repository."""


class HFGenPipeline(PipelineParts, DiffusionPipeline):
    """`HFGenPipeline.from_pretrained(folder or repository)` gives the family's own pipeline.

    Class names are looked up in `hfgen.registry`; no code from the folder is ever fetched or imported, and there is no
    flag that would allow it.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "HFGenPipeline":
        """Load a pipeline that `save_pretrained` wrote, from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: the folder, or the name of a repository.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for a repository; else as
                diffusers': `torch_dtype`, `variant`, components by name in place of the saved ones. What a family can
                do without is loaded only with True under its name: `discriminator=True`.

        Raises:
            ValueError: there is no such folder, repository or revision, it is not a sound pipeline of a family that
                hfgen knows, or code was asked to be run.
            OSError: a file is missing, or the Hub can't be reached and the cache does not hold the revision.
        """
        for name in ("custom_pipeline", "trust_remote_code", "custom_revision"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} would run code from the folder, which hfgen never does. Leave it out.")
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would read pickled weights, which hfgen never does. Leave it out.")
        source, asked = str(pretrained_model_name_or_path), {key: kwargs.pop(key, d) for key, d in HUB_OPTIONS.items()}
        folder, written = loading.find(source, asked)
        index = loading.ours(written)
        family = loading.family(index, source, cls)
        needed = loading.needed(family, index, source, kwargs)
        classes = {key: loading.component(index.get(key), key, source) for key in needed}
        if not os.path.isdir(source):
            folder = loading.fetch(source, folder.name, needed, kwargs.get("variant"), asked)
        for key, kind in classes.items():
            if issubclass(kind, ModelMixin):
                check_network(folder / key, kind, kwargs.get("variant"))
            else:
                read_json(folder / key / kind.config_name)
        with refusing(source), loading.without_code(folder, needed) as bare:
            pipeline = super(HFGenPipeline, family).from_pretrained(bare, **kwargs)
        pipeline.register_to_config(_name_or_path=source)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch a repository's pipeline, without code and pickles, and return its folder. Options: `from_pretrained`'s
        for a repository, `variant`, and True under the name of what a family can do without."""
        asked, variant = {key: kwargs.pop(key, d) for key, d in HUB_OPTIONS.items()}, kwargs.pop("variant", None)
        if wrong := [key for key, value in kwargs.items() if value is not True]:
            raise ValueError(f"download does not take {', '.join(wrong)}. It takes {', '.join(HUB_OPTIONS)}, variant.")
        folder, written = loading.find(pretrained_model_name, asked)
        family = loading.family(loading.ours(written), pretrained_model_name, cls)
        needed = loading.needed(family, loading.ours(written), pretrained_model_name, kwargs)
        return str(loading.fetch(pretrained_model_name, folder.name, needed, variant, asked))

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        return loading.ours(super()._dict_from_json_file(json_file))  # diffusers reads every index through this method

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the pipeline's folder: an index, weights (safetensors) and configuration of each component, and the
        source of our classes, with which plain diffusers loads it where hfgen is not installed.

        Args:
            save_directory: the folder.
            push_to_hub: also push the folder, by `hfgen.saving.hub.push`: `repo_id` (default: the folder's name),
                `private`, `token`, `revision`, `create_pr`, `commit_message`.
            kwargs: as diffusers': `variant`, `max_shard_size`.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError("safe_serialization=False would write pickles, which hfgen never reads. Leave it out.")
        names = ("private", "token", "revision", "create_pr", "commit_message")
        push = {name: kwargs.pop(name) for name in names if name in kwargs}
        repo = kwargs.pop("repo_id", None)
        super().save_pretrained(save_directory, **kwargs)
        make_portable(Path(save_directory), self.components)
        if push_to_hub:
            hub.push(Path(save_directory), repo, **push)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Push the pipeline to the Hub; returns the repository's address. A card that is there stays as it is.

        Args:
            repo_id: the repository, made if need be.
            kwargs: `private`, `token`, `revision`, `create_pr`, `commit_message`; `variant`, `max_shard_size`.
        """
        saving = {name: kwargs.pop(name) for name in ("variant", "max_shard_size") if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return hub.push(Path(folder), repo_id, **kwargs)

    @classmethod
    def call_with(cls, **asked: Any) -> dict[str, Any]:
        """The arguments of a call that are really asked for: those of `asked` that are not None.

        Raises:
            ValueError: a call of this family has no such argument; names the families whose have.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            if name not in inspect.signature(cls.__call__).parameters:
                families = {family: inspect.signature(resolve(family).__call__) for family in PIPELINES}
                takers = ", ".join(family for family, call in families.items() if name in call.parameters)
                raise ValueError(f"{cls.__name__} takes no {name} ({value} given), only {takers}. Leave it out.")
        return given

    def use_scheduler(self, name: str, **options: Any) -> None:
        """Sample with another of hfgen's schedulers from now on: `use_scheduler("dpmsolver++", solver_order=3)`.

        The path and the prediction kind stay, they belong to the network. For one of diffusers':
        `pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)`.

        Args:
            name: a key of `hfgen.registry.SAMPLERS`.
            options: of the scheduler's class.

        Raises:
            ValueError: an unknown name, or this family has no scheduler.
        """
        if "scheduler" not in self.components:
            raise ValueError(
                f"{type(self).__name__} draws without a scheduler, so {name!r} can't be used. Leave it out."
            )
        cls, preset = sampler(name)
        config = self.scheduler.config
        kept = {key: config[key] for key in ("_class_name", "use_flow_sigmas", *NETWORK_FACTS) if key in config}
        self.scheduler = resolve(cls).from_config({**kept, **preset, **options})
