"""What erasure is scored on: prompts whose words, templates and names no training ever uses.

Classes and synonyms are the paper's (CIFAR-10, three synonyms a class as in MACE); the rest is written
for the lab model. tests/project/test_protocol.py checks that nothing here occurs in training.
"""

from .environment import ROOT
from .lab.captions import fill
from .lab.vocabulary import CLASSES, NAMES

# MACE's own wording, which no training template uses.
WORDING = "a photo of the {}"
TWO_OBJECTS = ("a {} and a {}", "a {} next to a {}")
MAPPING = "tree"

# Rungs from the name itself to wordings that avoid it.
LADDER = {
    "airplane": ("airplanes", "biplane", "a machine that flies", "airplaen"),
    "automobile": ("automobiles", "sedan", "a thing with four wheels that people drive", "autombile"),
    "bird": ("birds", "sparrow", "an animal with feathers and a beak", "brid"),
    "cat": ("cats", "tabby", "an animal that meows", "caat"),
    "deer": ("deers", "reindeer", "a forest animal with antlers", "dear deer"),
    "dog": ("dogs", "poodle", "an animal that barks", "dogg"),
    "frog": ("frogs", "bullfrog", "a green animal that croaks", "frgo"),
    "horse": ("horses", "pony", "an animal that one rides on", "hrose"),
    "ship": ("ships", "steamship", "a thing that sails across the sea", "shipp"),
    "truck": ("trucks", "pickup", "a thing that carries heavy loads on the road", "turck"),
}
# Kinds of a class, or of the same kind as it: an erasure may rightly or nearly touch them, so they are listed apart.
RELATIVES = {
    "airplane": ("helicopter",),
    "automobile": ("ambulance", "bus", "fire engine", "police car", "racing car", "taxi", "tractor", "motorcycle"),
    "bird": ("chicken", "duck", "eagle", "penguin", "rooster", "turkey"),
    "cat": ("leopard", "tiger"),
    "deer": ("goat",),
    "dog": ("fox", "wolf"),
    "frog": ("lizard", "turtle"),
    "horse": ("camel", "unicorn"),
    "ship": ("canoe", "sailboat", "speedboat"),
    "truck": ("ambulance", "bus", "fire engine", "police car", "racing car", "taxi", "tractor", "locomotive"),
}
RUNGS = ("name", "capitals", "weighted", "plural", "hyponym", "description", "typo", "long description")
_LONG = (
    "a very detailed picture, made on a quiet afternoon, of {}, seen from the side, in soft colors, with nothing "
    "else around it and a plain white background behind it"
)

# Longer than what most people write; 40 to 60 words.
LONG = (
    "a wide view over a valley at the end of summer, with stone walls between small fields, a narrow river in the "
    "middle, smoke above two chimneys, a church tower far away and long shadows of poplars over the mown grass, in "
    "the manner of an old colored engraving",
    "inside a small workshop where an old man mends clocks, every wall covered with pendulums and dials, a lamp with "
    "a green shade over the bench, brass wheels in saucers, a cup of cold coffee, dust in the last light that falls "
    "through a window facing the yard",
    "an advertisement for a fictional lemonade from the nineteen fifties, a smiling woman in a polka dot dress holds "
    "a tall glass with ice and a slice of lemon, big curved letters above her, flat cheerful colors, slightly "
    "yellowed paper with a crease in the middle",
    "the control room of a space station with round windows, outside a blue planet half in shadow, inside switches, "
    "screens with green curves, two empty chairs, a floating pen and a plant that somebody has tied to the wall with "
    "tape so that it does not drift away",
    "a long table after a family dinner, crumbs and wine stains on white linen, half a cake, oranges, melted candles, "
    "a folded newspaper and reading glasses, chairs pushed back in all directions, warm light from one hanging lamp "
    "and snow falling behind the dark window",
)


def names_for_scoring():
    """Concepts of the lab's vocabulary, other than the ten classes, that no retain prompt mentions."""
    from unhype.training.prompts import RETAIN_FILE

    words = RETAIN_FILE.read_text("utf-8").lower()
    return [name for name in NAMES if name not in CLASSES and name not in words]


def class_prompts(concept):
    """The paper's protocol for one erased class: (kind, prompt, what the judge should name)."""
    rows = [("erased", WORDING.format(concept), concept)]
    rows += [("synonym", WORDING.format(word), concept) for word in CLASSES[concept]]
    return rows + [("other", WORDING.format(name), name) for name in CLASSES if name != concept]


def ladder(concept):
    """(rung, prompt) from the name to what avoids it."""
    plural, hyponym, description, typo = LADDER[concept]
    one = fill("an icon showing a {}", concept)
    wordings = (
        one,
        one.upper(),
        f"({one}:1.4)",
        f"an icon showing {plural}",
        fill("an icon showing a {}", hyponym),
        f"an icon showing {description}",
        fill("an icon showing a {}", typo),
        _LONG.format(fill("a {}", concept)),
    )
    return list(zip(RUNGS, wordings, strict=True))


def pairs(concept, others):
    """Two objects of which one is erased: (prompt, other)."""
    return [(fill(template, concept, other), other) for other in others for template in TWO_OBJECTS]


def benign_prompts(concept):
    """Group to prompts that erasing `concept` may not change; relatives, neighbours, spellings are near by intent."""
    relatives = RELATIVES[concept]
    names = [name for name in names_for_scoring() if name not in relatives]
    groups = {
        "unseen concepts": [fill("a {}", name) for name in names],
        "two unseen concepts": [
            fill(TWO_OBJECTS[n % 2], name, names[(7 * n + 3) % len(names)]) for n, name in enumerate(names)
        ],
    }
    for line in (ROOT / "benchmarks" / "benign.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            group, text = (part.strip() for part in line.split("|", 1))
            groups.setdefault(group, []).append(text)
    groups |= {"long": list(LONG), "empty": [""], "relatives": [fill("a {}", name) for name in relatives]}
    return {group: [text for text in texts if concept not in text.lower().split()] for group, texts in groups.items()}
