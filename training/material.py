"""What the loop reads: the embeddings of every prompt of a run, and the task that its objective trains on."""

import torch

from .attention import AttentionTask, token_pairs
from .cache import build_cache
from .loop import Material


def build_material(clip, plan, frozen, prompts, generator, report):
    """Everything that training reads, on the device where it is needed.

    H sees each prompt as its pooled vector and as the reader tells it from tokens, each as a prompt of its own.
    """
    settings = plan.request.settings
    phrases, phrase_c = prompts.views_of(plan.phrases, lambda phrase: phrase.prompt)
    retain_c, held_out_c = (
        prompts.views_of(part)[1].to(frozen.device) for part in (plan.retain.train, plan.retain.held_out)
    )
    phrase_c = phrase_c.to(frozen.device)
    if settings.objective == "attention":
        return Material(None, phrase_c, [], retain_c, held_out_c, _attention_task(clip, plan, frozen, prompts))
    probe = frozen.noise(1, settings.height, settings.width, torch.Generator().manual_seed(0))
    texts = {text for phrase in phrases for text in (phrase.prompt, phrase.mapping)}
    conds = {text: frozen.model_conds(prompts.encoded[text], probe, settings.guidance) for text in sorted(texts)}
    cache = build_cache(
        frozen,
        phrases,
        prompts.encoded,
        conds,
        settings,
        generator,
        lambda done, total: report("preparing", done, total),
    )
    return Material(cache, phrase_c, [conds[phrase.prompt] for phrase in phrases], retain_c, held_out_c)


def _attention_task(clip, plan, frozen, prompts):
    phrases = [*plan.phrases, *plan.sentences]
    states = {text: prompts.encoded[text].conditioning[0][0][0].cpu() for phrase in phrases for text in phrase[1:]}
    pairs = token_pairs(clip, [phrase[1:] for phrase in phrases], states)
    _, c = prompts.views_of(phrases, lambda phrase: phrase.prompt)
    frozen.load()
    modules = [frozen.network.get_submodule(layer.name) for layer in frozen.layers]
    return AttentionTask(modules, pairs, len(plan.phrases), c.to(frozen.device))
