"""Share of samples that a support vector machine, trained on real images, assigns to the requested class.

Prints this share for samples, and the accuracy of the classifier on held-out real images for comparison. It does not
measure variety. A fifth of the images is held out from the classifier. (On `digits`, the model was trained on all.)

    python benchmarks/class_agreement.py outputs/quickstart --dataset digits
"""

import dataclasses
import json
import time
from pathlib import Path

from hfgen.options import DataArgs, argument, option, parse, parser


@dataclasses.dataclass
class Options:
    """Benchmark"""

    pipeline: str = argument("folder of a class-conditional pipeline")
    num: int = option(1000, "number of samples, evenly over the classes")
    steps: int | None = option(None, "steps of the scheduler; default: its own")
    guidance_scale: float = option(1.5, "classifier-free guidance")
    judge_images: int = option(10000, "most real images that the classifier is trained on")
    output: str | None = option(None, "JSON file for the result")


def main() -> None:
    """Train the classifier, draw samples and classify them."""
    example = "python benchmarks/class_agreement.py outputs/quickstart --dataset digits"
    command = parser("class_agreement.py", __doc__.splitlines()[0], example, Options, DataArgs, config=False)
    parsed = parse(command, None, Options, DataArgs)
    options = parsed[0]

    import torch
    from sklearn.svm import SVC

    from hfgen import HFGenPipeline, load_images
    from hfgen.data.training_data import choose_data
    from hfgen.utils.seeds import generator_of, sample_generators

    pipeline = HFGenPipeline.from_pretrained(options.pipeline)
    choice = choose_data(pipeline.training_data, options.pipeline, parsed.given_of(DataArgs))
    data = load_images(choice.args, own=choice.own)
    print("\n".join(choice.check(data)))
    order = torch.randperm(len(data), generator=generator_of("benchmark", 0, "judge"))
    held, used = order[: len(data) // 5], order[len(data) // 5 :][: options.judge_images]

    def features(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) / 255

    classifier = SVC(C=10).fit(features(data.images[used]), data.labels[used])
    real = classifier.score(features(data.images[held][:2000]), data.labels[held][:2000])

    pipeline.set_progress_bar_config(disable=True)
    classes = pipeline.config.num_classes
    labels = [i % classes for i in range(options.num)]
    samples, start = [], time.perf_counter()
    for first in range(0, options.num, 250):
        part = labels[first : first + 250]
        samples.append(
            pipeline(
                class_labels=part,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance_scale,
                generator=sample_generators(0, range(first, first + len(part))),
                output_type="pt",
            ).images
        )
    seconds = time.perf_counter() - start
    agreement = classifier.score(torch.cat(samples).flatten(1), labels)
    result = {
        "pipeline": options.pipeline,
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": options.steps or getattr(pipeline.scheduler, "default_num_inference_steps", None),
        "guidance_scale": options.guidance_scale,
        "samples": options.num,
        "judge_trained_on": len(used),
        "agreement_on_held_out_real_images": round(real, 4),
        "agreement_on_samples": round(agreement, 4),
        "samples_per_second": round(options.num / seconds, 1),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
