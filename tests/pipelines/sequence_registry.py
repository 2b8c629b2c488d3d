"""Lines that the family of sequences adds to hfgen's registry."""

from hfgen import registry

PIPELINES = {
    "ObservedSequencePipeline": "tests.pipelines.sequences",
    "TextSequencePipeline": "tests.pipelines.sequences",
}
COMPONENTS = {"SequenceModel": "tests.pipelines.sequence_network"}


def register():
    """Add the lines, for the rest of this process."""
    registry.PIPELINES.update(PIPELINES)
    registry.COMPONENTS.update(COMPONENTS)
    registry.EXPORTS.update({**PIPELINES, **COMPONENTS})


def unregister():
    """Take them out again."""
    for name in (*PIPELINES, *COMPONENTS):
        for lines in (registry.PIPELINES, registry.COMPONENTS, registry.EXPORTS):
            lines.pop(name, None)
