"""Which of the retained prompts are near relatives of the erased concepts."""

from types import SimpleNamespace

import torch

from unhype.training.prompts import Phrase, RetainSplit
from unhype.training.relatives import kept_example, near_relatives

NEAR = {"a cat": 1.0, "a photo of a lion": 0.9, "a lion": 0.8, "a fox": 0.7, "a photo of a dog": 0.6, "a tiger": 0.95}
FAR = [f"a photo of a thing{n}" for n in range(60)]
LONG = ["a lion that sleeps under a very old tree", "a lion, a fox", "a fox with a hen"]


def embedding(nearness):
    return torch.tensor([nearness, (1 - nearness**2) ** 0.5, 0.1])


ENCODED = {text: SimpleNamespace(c=embedding(nearness)) for text, nearness in NEAR.items()}
ENCODED |= {text: SimpleNamespace(c=embedding(1.0)) for text in LONG}
ENCODED |= {text: SimpleNamespace(c=embedding(-0.5 + n / 1000)) for n, text in enumerate(FAR)}


def plan_of(**preserved):
    retained = [*(text for text in NEAR if text != "a cat"), *LONG, *FAR]
    retain = RetainSplit(tuple(retained[:20]), tuple(retained[20:]), preserved=preserved)
    return SimpleNamespace(retain=retain, concepts=(("cat", "tree"),), phrases=[Phrase(0, "a cat", "a tree")])


def test_they_are_short_near_and_about_different_things():
    found = near_relatives(plan_of(), SimpleNamespace(encoded=ENCODED))
    assert found == ["a tiger", "a photo of a lion", "a fox"]


def test_the_users_own_lines_come_first_and_are_not_found_again():
    plan = plan_of(tiger=("tiger", "a tiger"))
    near = near_relatives(plan, SimpleNamespace(encoded=ENCODED))
    assert "a tiger" not in near
    assert kept_example(plan, near) == "a tiger"
    assert kept_example(plan_of(), near) == near[0]
