"""What came out of a training run, on one page and in words."""

from .cards import card_blocks
from .curves import panels
from .page import ERASED, FAINT, KEPT, SMALL, TITLE, beside, page, words
from .progress import duration

_LISTED = 8
_ENDED = {
    "finished": "Finished",
    "leak": "Stopped early, before other prompts would have changed,",
    "already trained": "These settings were trained before; nothing to do. Finished",
}


def ended(outcome):
    """How a run came to its end, as a sentence."""
    return f"{_ENDED[outcome.reason]} after {outcome.trained.record.training['steps']} steps."


def _silent(training):
    return (
        f"{training['held_out_silent']:.0%} of {training['retain_prompts'][1]} unseen everyday prompts stay exactly as "
        "they were."
    )


def _not_kept(training):
    """A line about what stands in 'preserve' and changes all the same, if there is such a thing."""
    heard = training.get("preserve_heard", [])
    named = ", ".join(f"'{line}'" for line in heard)
    return [f"Too near to what is erased to be kept: {named}."] if heard else []


def in_words(outcome):
    """A `run.Outcome` in words."""
    record = outcome.trained.record
    lines = [ended(outcome), "Erases:", record.summary(), _silent(record.training), *_not_kept(record.training)]
    return "\n".join([*lines, f"Saved as {outcome.path}"])


def _kept(training):
    named = training.get("preserve", [])
    everyday = f"{training['retain_prompts'][0]} prompts in all"
    return f"Kept in training: {', '.join(named)}; {everyday}." if named else f"Kept in training: {everyday}."


def _settings(training):
    own = training["settings"]
    names = ("kind", "objective", "seed", "rank", "learning_rate", "retain_weight", "guidance", "width", "height")
    took = f"Took {duration(training['seconds'])}. "
    return took + ", ".join(f"{name} {own[name]}" for name in names if name in own)


def training_page(outcome, pairs):
    """A page (PIL) of a run: concepts, what is kept, pictures before and after, curves, settings and file name.

    pairs: `compare.Pair`s, may be empty.
    """
    record = outcome.trained.record
    training, changes = record.training, record.changes()
    lines = changes[:_LISTED]
    if len(changes) > _LISTED:
        lines.append(f"and {len(changes) - _LISTED} more")
    curves = panels(outcome.losses, training.get("drift_curve", []), max(1, training["steps"]))
    return page(
        [
            words(outcome.path.name, TITLE, lines=2),
            words(ended(outcome)),
            words("\n".join(lines)),
            words(_silent(training), color=KEPT),
            *(words(line, color=ERASED, lines=3) for line in _not_kept(training)),
            words(_kept(training), SMALL, FAINT, lines=3),
            *card_blocks(pairs),
            *([beside(curves)] if curves else []),
            words(_settings(training), SMALL, FAINT),
        ]
    )
