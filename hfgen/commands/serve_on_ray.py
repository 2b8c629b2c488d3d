"""What Ray deploys from a `RayService`, or by `serve run hfgen.commands.serve_on_ray:application words=...`."""

import functools
import shlex
from typing import Any

from ..web.cluster import Arguments, deployed
from .serve import build_application


def application(arguments: Arguments) -> Any:
    """Return the application of Ray whose replicas are `hfgen serve` with these words."""
    return deployed(functools.partial(build_application, shlex.split(arguments.words)), arguments)
