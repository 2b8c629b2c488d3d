"""The worked example of CONTRIBUTING.md: a whole family that is made of new files and one registry entry.

The items are sequences (T, D). Each of the D channels is a tone, and a prompt of D token ids says its frequencies. A
network learns to draw the sequences for a prompt; while it trains, an objective replays items of earlier steps.
"""

from hfgen.registry import Family, register

FAMILY = Family(
    "tests.helpers.newfamily.train_tones",
    pipelines={"TonePipeline": "tests.helpers.newfamily.pipeline"},
    networks={"ToneModel": "tests.helpers.newfamily.network"},
    exports={"Rehearsal": "tests.helpers.newfamily.objective"},
)
"""A family in hfgen is such an entry of `hfgen.registry.FAMILIES`; a family elsewhere registers itself as here."""

register("tones", FAMILY)
