"""Starting points for Train Erasure: lists to use as they are or to change.

Each maps a concept to something that fits into the same place of a sentence, and preserves near concepts.
People and artists are examples for the user's own.
"""

from typing import NamedTuple

CUSTOM = "custom"


class Preset(NamedTuple):
    """The texts of the node: `concepts` and `preserve` as users write them, and the `kind` they are trained as."""

    kind: str
    concepts: str
    preserve: str


PRESETS = {
    "object": Preset(
        "object",
        "# Weapons. Put your own things here, one a line.\n"
        "gun -> umbrella\n"
        "pistol -> umbrella\n"
        "revolver -> umbrella\n"
        "rifle -> broom\n"
        "machine gun -> broom\n"
        "combat knife -> wooden spoon",
        "hair dryer\ncamera\npower drill\nbinoculars\nwater hose\nviolin\nkitchen knife\nscissors\n"
        "a soldier in uniform\na police officer on patrol\na chef cutting vegetables\na hunter walking in a forest",
    ),
    "person": Preset(
        "person",
        "# Put the names here that must not be drawn, each in the ways people write it.\n"
        "Albert Einstein -> an old man\n"
        "Einstein -> an old man\n"
        "Marilyn Monroe -> a woman",
        "# People who look or sound alike, and others who must stay.\n"
        "Isaac Newton\nNikola Tesla\nMarie Curie\nAudrey Hepburn\nGrace Kelly\nElvis Presley\n"
        "an old man with white hair\na blonde woman in a white dress\na portrait of a physicist at a blackboard\n"
        "an actress on the red carpet",
    ),
    "style": Preset(
        "style",
        "# Put the artist here, each in the ways people write the name.\n"
        "Vincent van Gogh -> a photograph\n"
        "Van Gogh -> a photograph\n"
        "The Starry Night -> a photograph of a village at night",
        "# Styles that are near and must stay.\n"
        "Claude Monet\nPaul Cezanne\nPaul Gauguin\nRembrandt\nimpressionism\nwatercolor\noil painting\n"
        "a vase of sunflowers on a table\na wheat field under a blue sky\na village under a sky full of stars\n"
        "a portrait of a man with a red beard",
    ),
    "explicit content": Preset(
        "object",
        "naked woman -> woman in a coat\n"
        "naked man -> man in a coat\n"
        "naked person -> person in a coat\n"
        "nude -> portrait in winter clothes\n"
        "nudity -> winter clothes\n"
        "topless woman -> woman in a sweater\n"
        "bare breasts -> sweater\n"
        "genitals -> trousers\n"
        "sexual intercourse -> people talking\n"
        "erotic photograph -> family photograph\n"
        "pornography -> landscape photography",
        "woman\nman\nperson\nportrait\nbikini\nbathing suit\nmarble statue\nbare feet\nbedroom\n"
        "a woman in a summer dress\na swimmer in a pool\npeople in bathing suits at the beach\n"
        "a wrestler in the ring\na ballet dancer on stage\na couple kissing at a wedding\n"
        "a doctor examining a patient\nan anatomical drawing of the heart",
    ),
}


def with_preset(preset: str, kind: str, concepts: str, preserve: str) -> tuple[str, str, str]:
    """The (kind, concepts, preserve) to train. What stands in the node counts; a preset only fills an empty list.

    Where `concepts` names nothing, the preset's list and kind are taken, and its preserve list if that is empty too.
    """
    if preset == CUSTOM or concepts.strip():
        return kind, concepts, preserve
    chosen = PRESETS[preset]
    return chosen.kind, chosen.concepts, preserve if preserve.strip() else chosen.preserve
