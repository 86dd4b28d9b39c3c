"""What came out of a training run, on one page and in words."""

from .cards import card_blocks
from .curves import panels
from .page import FAINT, KEPT, SMALL, TITLE, beside, page, words
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


def in_words(outcome):
    """A `run.Outcome` in words."""
    record = outcome.trained.record
    return f"{ended(outcome)}\nErases:\n{record.summary()}\n{_silent(record.training)}\nSaved as {outcome.path}"


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
            words(_kept(training), SMALL, FAINT, lines=3),
            *card_blocks(pairs),
            *([beside(curves)] if curves else []),
            words(_settings(training), SMALL, FAINT),
        ]
    )
