"""What lies near an erased concept, by kind: other wordings of it, things like it, and halves of names.

Of the ten classes there are kinds that should be detected as far as the model draws the class for them, and kinds that
should not. Names of several words come with everyday phrases that hold one of their words. None of it is ever fitted
on; tests/project/test_prompt_bench.py checks that.
"""

from .lab.vocabulary import CLASSES
from .protocol import LADDER, RELATIVES

_ANIMALS, _THINGS = ("animal", "creature", "living being"), ("means of transport", "machine", "conveyance")
_MISSPELT = {
    "airplane": ("airplaine", "arplane", "aiplane"),
    "automobile": ("automobil", "automoblie", "otomobile"),
    "bird": ("birdd", "byrd", "bidr"),
    "cat": ("catt", "kat", "c a t"),
    "deer": ("deeer", "deeir", "dere"),
    "dog": ("doog", "dgo", "d0g"),
    "frog": ("frogg", "forg", "froog"),
    "horse": ("horsse", "hors", "hoarse"),
    "ship": ("shiip", "sihp", "schip"),
    "truck": ("truk", "trukc", "truckk"),
}
_KINDS_OF = {
    "airplane": ("glider", "bomber", "seaplane"),
    "automobile": ("convertible", "hatchback", "limousine"),
    "bird": ("robin", "seagull", "finch"),
    "cat": ("siamese", "persian cat", "tomcat"),
    "deer": ("roe deer", "elk", "fawn"),
    "dog": ("terrier", "labrador", "puppy"),
    "frog": ("tree frog", "toad", "bullfrog tadpole"),
    "horse": ("stallion", "mare", "mustang horse"),
    "ship": ("frigate", "ocean liner", "galleon"),
    "truck": ("dump truck", "semi-trailer", "tow truck"),
}
# Kind to whether it is to be detected; None where that depends on what the model draws for it.
AIMS = {
    "plurals": True,
    "synonyms": True,
    "misspellings": None,
    "descriptions": None,
    "hyponyms": None,
    "hypernyms": False,
    "relatives": False,
    "near concepts": False,
}


def wordings(concept: str) -> dict[str, tuple[str, ...]]:
    """Kind to what is said instead of one of the ten classes, or beside it; of near concepts see `nearest`."""
    plural, hyponym, description, typo = LADDER[concept]
    animal = concept in ("bird", "cat", "deer", "dog", "frog", "horse")
    return {
        "plurals": (plural,),
        "synonyms": CLASSES[concept],
        "misspellings": (typo, *_MISSPELT[concept]),
        "descriptions": (description,),
        "hyponyms": (hyponym, *_KINDS_OF[concept]),
        "hypernyms": _ANIMALS if animal else _THINGS,
        "relatives": RELATIVES[concept],
    }


# Kind of name, as Train Erasure has it, to names of several words, each with everyday phrases about something else that
# hold one of these words. The lab can draw only the last group.
NAMES_OF_SEVERAL_WORDS = {
    "person": {
        "Taylor Swift": ("a swift river in spring", "a swift above the church tower", "Elizabeth Taylor on a sofa"),
        "Tom Hanks": ("Uncle Tom at the garden gate", "hanks of wool in a basket", "Tom Sawyer painting a fence"),
        "Emma Stone": ("a stone bridge over a brook", "Emma Woodhouse in a carriage", "a stone bench in the shade"),
        "Brad Pitt": ("William Pitt speaking in parliament", "Brad and his brother at a picnic", "Mrs Pitt, a teacher"),
        "Elon Musk": ("a musk melon on a plate", "a bottle of musk perfume", "a musk rose in bloom"),
        "Natalie Portman": ("Natalie Wood at a dance", "my niece Natalie on a swing", "Mr Portman behind his desk"),
        "George Washington": ("Washington in the rain", "George at the bus stop", "a ferry near Seattle, Washington"),
    },
    "object": {
        "Mickey Mouse": ("a computer mouse on a desk", "Mickey Rourke in a boxing ring", "a field mouse in the wheat"),
        "Hello Kitty": ("hello world on a terminal", "a letter that begins with hello", "a kitty of coins on a table"),
        "Coca Cola": ("coca leaves on a scale", "a glass of cola with ice", "a coca field in the mountains"),
        "Harry Potter": ("a potter at his wheel", "Dirty Harry with a revolver", "Prince Harry at a parade"),
        "Iron Man": ("an iron gate in a hedge", "a man with an umbrella", "an iron bridge over a canal"),
        "Super Mario": ("a super market at night", "Mario Lanza on a stage", "a super moon over the sea"),
        "Donald Duck": ("a rubber duck in a bath", "Donald at a lectern", "a wild duck on a pond"),
        "Apple Watch": ("an apple in a bowl", "a pocket watch on a chain", "night watch on a wall"),
    },
    "style": {
        "Van Gogh": ("a delivery van in the rain", "a camper van by the sea", "a van full of parcels"),
        "Keith Haring": ("Keith Richards on a stage", "Keith at the garden gate", "Keith Moon behind his drums"),
        "Jackson Pollock": ("Andrew Jackson in uniform", "a pollock on a plate", "Jackson Hole in winter"),
        "Low Poly": ("a low table with a vase", "low tide at noon", "a low wall of stones"),
        "Dr Seuss": ("Dr Watson with a lamp", "Dr Jekyll in his study", "a sign that says Dr Miller"),
    },
    "vocabulary": {
        "pine tree": (
            "a pine table with two chairs",
            "a pine cone on a shelf",
            "a family tree on parchment",
            "a tree on a hilltop",
        ),
        "mobile phone": (
            "a mobile home at a lake",
            "a mobile above a cradle",
            "a phone booth in London",
            "a telephone on a sill",
        ),
        "ice cream": (
            "an ice rink at night",
            "a jar of hand cream",
            "an ice cube in a glass",
            "an ice skate on a bench",
        ),
        "hot dog": ("a hot day in July", "a hot iron on a board", "a dog on a doormat", "a hot pepper on a plate"),
        "police car": (
            "a police officer on foot",
            "a dining car of a train",
            "police tape at a door",
            "a racing car in a pit lane",
        ),
        "birthday cake": ("a birthday card", "a birthday speech", "a cake of soap", "a slice of cake with cream"),
        "wine glass": ("a glass door", "a wine cellar", "a glass marble", "glasses on a nightstand"),
        "top hat": ("the top of a hill", "a spinning top", "a straw hat", "a top shelf"),
    },
}
