"""The revision of a pipeline names what it computes with, wherever it was loaded from."""

import shutil

import torch

import hfgen
from hfgen.serving.revision import revision_of
from tests.saving import test_portable as portable


def small(**options):
    sizes = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 1, "patch_size": 2, "num_class_embeds": 3}
    return hfgen.DenoisingPipeline(portable.network("DiTModel", **sizes), hfgen.RectifiedFlowScheduler(), 2, **options)


def test_the_same_pipeline_has_the_same_revision_in_every_folder(tmp_path):
    small().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    revisions = {revision_of(hfgen.HFGenPipeline.from_pretrained(tmp_path / name)) for name in "ab"}
    assert revisions == {revision_of(small())} and len(revisions.pop()) == 16


def test_whatever_changes_samples_changes_the_revision():
    changed, rounded, scheduled = small(), small(), small()
    with torch.no_grad():
        next(changed.denoiser.parameters()).view(-1)[0] += 1e-6
    rounded.to(torch.bfloat16)
    scheduled.use_scheduler("ddim")
    others = [small(), small(label_names=["a", "b"]), changed, rounded, scheduled]
    assert len({revision_of(pipeline) for pipeline in others}) == 5


def test_texts_count(tmp_path):
    pipeline = portable.showing()["DiTModel"]
    revision = revision_of(pipeline)
    pipeline.tokenizer.add_tokens(["zebra"])
    assert revision_of(pipeline) != revision == revision_of(portable.showing()["DiTModel"])


def test_a_discriminator_does_not_count(tmp_path):
    """It is saved with the pipeline, and loaded only where it is asked for."""
    pipeline = portable.generating()["mlp"]
    assert pipeline.discriminator is not None
    pipeline.save_pretrained(tmp_path / "gan")
    loaded = [hfgen.HFGenPipeline.from_pretrained(tmp_path / "gan", discriminator=asked) for asked in (None, True)]
    assert loaded[0].discriminator is None and loaded[1].discriminator is not None
    assert {revision_of(each) for each in loaded} == {revision_of(pipeline)}
    with torch.no_grad():
        next(pipeline.generator.parameters()).view(-1)[0] += 1e-3
    assert revision_of(pipeline) != revision_of(loaded[0])
