"""Classes of images with noise."""

from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from hfgen.paths import path_from_config
from hfgen.schedulers.configuration import network_facts
from hfgen.utils.arguments import checked

from .base import HFGenPipeline
from .classes import check_classes, class_numbers
from .images import image_batch
from .inputs import sample_shape_of
from .outputs import require_finite


class ClassProbabilities(BaseOutput):
    """The output of `NoisyClassifierPipeline`.

    Args:
        probabilities (B, classes): p(class | image).
    """

    probabilities: Tensor


class NoisyClassifierPipeline(HFGenPipeline):
    """A classifier of images at any level of noise on a path, for `ClassifierGuidance`. It draws nothing.

    Args:
        classifier: a `NoisyClassifierModel`.
        scheduler: any, whose configuration states the path.
        num_classes: number of classes.
        label_names: the classes' names.

    Raises:
        ValueError: another number of classes than the network's.
    """

    model_cpu_offload_seq = "classifier"

    @checked
    def __init__(
        self,
        classifier: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int = 10,
        label_names: list[str] | None = None,
    ):
        super().__init__()
        check_classes(num_classes, label_names, None)
        if classifier.config.num_classes != num_classes:
            raise ValueError(f"{num_classes=}, and the network has {classifier.config.num_classes} classes.")
        self.register_modules(classifier=classifier, scheduler=scheduler)
        self.register_to_config(num_classes=num_classes, label_names=label_names)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image."""
        return sample_shape_of(self.classifier)

    @checked
    def class_numbers(self, class_labels: Any) -> list[int]:
        """Return the numbers of classes, given by number or name. Raises ValueError for one that there is not."""
        numbers = class_numbers(class_labels, self.config.num_classes, self.config.label_names)
        return torch.as_tensor(numbers).reshape(-1).tolist()

    @checked
    @torch.no_grad()
    def __call__(
        self, images: Any, timestep: float | None = None, return_dict: bool = True
    ) -> ClassProbabilities | tuple[Tensor]:
        """Return p(class | image), (B, classes).

        Args:
            images: see `image_batch`; with noise floats of any range.
            timestep: the network's time step of their noise; None: the least of training, for clean images.
            return_dict: return a `ClassProbabilities`, else a tuple of the probabilities.

        Raises:
            ValueError: images that do not fit the model.
        """
        x = image_batch(images, self.sample_shape, "images", torch.inf).to(self._execution_device)
        path = path_from_config(network_facts(self.scheduler.config))
        first = torch.zeros((), dtype=torch.float64)
        time = path.snap(first) if timestep is None else path.time_of(torch.tensor(timestep, dtype=torch.float64))
        scaled = x.to(self.classifier.dtype) * float(path.input_scale(time))
        logits = self.classifier(scaled, path.timestep(time).to(x.device)).logits
        self.maybe_free_model_hooks()
        probabilities = require_finite(logits.float().softmax(1), "probabilities", self.components)
        return ClassProbabilities(probabilities=probabilities) if return_dict else (probabilities,)
