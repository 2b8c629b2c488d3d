"""Images per second that an image transformer draws with its cache, and when it computes all tokens again each time.

    python benchmarks/cache_throughput.py

One network of random weights, 196 tokens (28 x 28 black and white pixels in patches of 2 x 2). Both sides draw the same
images, which is checked bit for bit.
"""

import dataclasses
import time
from typing import Any

from hfgen.options import option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    batch_size: int = option(64, "images with the cache")
    few: int = option(16, "images without it; fewer than 16 take as long")
    size: str = option("s", "size of the network")
    seed: int = option(0, "of weights and images")


def rate(network: Any, uniform: Any, use_cache: bool) -> tuple[float, Any]:
    """Return images per second of one call, and the images."""
    start = time.perf_counter()
    symbols = network.draw(uniform, use_cache=use_cache).symbols
    return len(uniform) / (time.perf_counter() - start), symbols


def main(argv: list[str] | None = None) -> None:
    """Draw with the cache and without, compare, and print images per second and their ratio."""
    (options,) = parse(parser("cache_throughput.py", "", "", Options), argv, Options)
    import torch

    import hfgen

    torch.manual_seed(options.seed)
    network = hfgen.build_autoregressive("transformer", options.size, 28, 1, 2, patch_size=2).eval()
    uniform = torch.rand(options.batch_size, *network.noise_shape)
    network.draw(uniform[:4])
    cached, images = rate(network, uniform, True)
    plain, again = rate(network, uniform[: options.few], False)
    assert torch.equal(images[: options.few], again)
    print(f"cache {cached:.1f} images/s, without {plain:.2f} images/s, ratio {cached / plain:.0f}")


if __name__ == "__main__":
    main()
