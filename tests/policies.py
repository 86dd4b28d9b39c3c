"""Policies in the test's own process: rules over tiny erasers, and the host's functions put back afterwards."""

from contextlib import contextmanager
from dataclasses import replace

import comfy.sampler_helpers
from comfy.model_base import BaseModel
from core_parts import POOLED, normal
from tiny import tiny_eraser

from unhype.hypernet.record import TextEncoder
from unhype.policy.enforced import _enforced, enforce
from unhype.policy.guard import Guard
from unhype.policy.log import Log
from unhype.policy.rules import Rule, Rules


def strict_eraser(model, name="school", seed=0, width=POOLED, chunk=8, size=0.05):
    """An eraser of every prompt that can be strict."""
    eraser = tiny_eraser(model, seed=seed, width=width, size=size)
    record = replace(eraser.record, text_encoder=TextEncoder(chunk))
    return replace(eraser, record=record, name=name, concept_embeddings=normal(1, width, seed=seed + 1))


def rules_for(*erasers, **options):
    """Rules with these erasers."""
    return Rules([Rule(eraser) for eraser in erasers], **options)


@contextmanager
def enforcing(rules):
    """While open, these rules are enforced as at start; yields the `Guard`."""
    former = comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model
    guard = Guard(rules, Log())
    try:
        guard.set()
        enforce(rules)
        yield guard
    finally:
        comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model = former
        _enforced.clear()
