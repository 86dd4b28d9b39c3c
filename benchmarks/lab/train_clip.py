"""Distil the lab's CLIP from MiniLM: `python dev.py lab clip --minutes 120`.

The pooled end-token state, through CLIP's text projection, learns MiniLM's sentence embedding (its first 256
principal components); pooled states among themselves learn MiniLM's similarities, and to the names of the
vocabulary most of all. A run goes on from the last one's checkpoint in the cache folder.
"""

import copy
import logging
import math
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import comfy.sd1_clip
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize

from .. import commandline
from ..environment import cache_folder
from . import clip, storage
from .captions import with_article
from .clip_texts import SYNONYMS, Texts
from .teacher import Teacher
from .vocabulary import NAMES

log = logging.getLogger(__name__)

RATE, BATCH, POOL, PASSES = 1.5e-3, 128, 4096, 3
SAMPLE = 2000  # texts of which the principal components are taken
_RELATIONS, _NEAREST, _TEMPERATURE = 10.0, 0.3, 0.04
LICENCE = "Distilled from all-MiniLM-L6-v2 (Apache-2.0); phrases of DiffusionDB (CC0 1.0)."


def pooled_states(transformer, tokens: Tensor, ends: Tensor) -> Tensor:
    """What the host pools, (n, width), for token ids (n, length) and the place of each end token (n,).

    The host writes into its activations and always reads 77 tokens. Since no token sees a later one, the states
    up to the end token are the same here, at the length of the longest text, and gradients can go through.
    """
    model = transformer.text_model
    length = tokens.shape[1]
    x = model.embeddings.token_embedding(tokens) + model.embeddings.position_embedding.weight[:length]
    mask = torch.full((length, length), -torch.inf, device=x.device).triu(1)
    attention = optimized_attention_for_device(x.device, mask=True, small_input=True)
    for layer in model.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask.to(x.dtype), attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.final_layer_norm(x[torch.arange(len(x)), ends].float())


class Tokens(NamedTuple):
    """Token ids (n, length) padded with end tokens, the place of each first end token (n,)."""

    ids: Tensor
    ends: Tensor


def tokens_of(tokenizer, texts: list[str]) -> tuple[Tokens, list[str]]:
    """First chunks of texts and, for the teacher, what these chunks hold, without brackets and weights."""
    words = tokenizer.clip_l
    chunks, seen = [], []
    for text in texts:
        plain = "".join(part for part, _ in comfy.sd1_clip.token_weights(text, 1.0))
        ids = words.tokenizer(plain)["input_ids"]
        if len(ids) > clip.TOKENS:
            ids = [*ids[: clip.TOKENS - 1], words.end_token]
            plain = words.tokenizer.decode(ids[1:-1])
        chunks.append(ids)
        seen.append(plain)
    longest = max(len(ids) for ids in chunks)
    padded = [ids + [words.end_token] * (longest - len(ids)) for ids in chunks]
    return Tokens(torch.tensor(padded), torch.tensor([len(ids) - 1 for ids in chunks])), seen


def initialise(transformer, rows: Tensor) -> None:
    """Fill the host's uninitialised layers; rows (vocabulary, rank) are the token table's first values."""
    depth = len(transformer.text_model.encoder.layers)
    for name, parameter in transformer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
        elif "position" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        elif name.endswith(("widen.weight", "text_projection.weight")):
            torch.nn.init.orthogonal_(parameter)
        else:
            into_residual = name.endswith(("out_proj.weight", "fc2.weight"))
            torch.nn.init.normal_(
                parameter, std=parameter.shape[1] ** -0.5 / (math.sqrt(depth) if into_residual else 1)
            )
    with torch.no_grad():
        transformer.get_input_embeddings().rows.weight.copy_(rows)


def first_rows(tokenizer, teacher: Teacher) -> Tensor:
    """Principal components (vocabulary, rank) of MiniLM's embeddings of tokens as words: rare words mean something."""
    words = tokenizer.clip_l.tokenizer
    tokens = words.convert_ids_to_tokens(range(clip.VOCABULARY))
    embedded = teacher.embed([token.removesuffix("</w>") for token in tokens], batch=512)
    embedded -= embedded.mean(0)
    _, _, basis = torch.svd_lowrank(embedded, q=clip.RANK + 16, niter=4)
    rows = embedded @ basis[:, : clip.RANK]
    return 0.3 * rows / rows.std()


class Bank:
    """Names and their synonyms, which are in every step: tokens and MiniLM's embeddings, bare and with an article."""

    def __init__(self, tokenizer, teacher: Teacher):
        words = [*NAMES, *SYNONYMS]
        forms = words, [with_article(word) for word in words]
        self.tokens = [tokens_of(tokenizer, list(form))[0] for form in forms]
        self.targets = [teacher.embed(form) for form in forms]


def loss_of(transformer, tokens: Tokens, targets: Tensor, bank: Tokens, bank_targets: Tensor, basis: Tensor) -> Tensor:
    """Distance to MiniLM's embeddings, of similarities among a batch and its bank, and of which names are nearest."""
    with torch.amp.autocast("cpu", torch.bfloat16):
        states = torch.cat([pooled_states(transformer, *tokens), pooled_states(transformer, *bank)]).float()
    taught = torch.cat([targets, bank_targets])
    projected = transformer.text_projection(states)
    embedding = (1 - torch.cosine_similarity(projected, taught @ basis, dim=1)).mean()
    states = normalize(states, dim=1)
    ours, theirs = states @ states.T, taught @ taught.T
    start = len(targets)
    columns = slice(start, start + len(NAMES))
    # No name is compared with itself.
    own = torch.zeros_like(theirs).fill_diagonal_(1e4)
    nearest = cross_entropy(
        (ours - own)[:, columns] / _TEMPERATURE, ((theirs - own)[:, columns] / _TEMPERATURE).softmax(1)
    )
    return embedding + _RELATIONS * mse_loss(ours, theirs) + _NEAREST * nearest


class Run:
    """Model, running mean, optimiser and generator of a distillation, kept in one file."""

    def __init__(self, folder: Path, seed: int):
        self.path = folder / "clip.pt"
        self.clip = clip.build()
        self.model = self.clip.cond_stage_model.clip_l.transformer.requires_grad_(True)
        self.teacher = Teacher()
        self.generator = torch.Generator().manual_seed(seed)
        self.texts = Texts(self.generator)
        self.steps, self.seconds, self.curve = 0, 0.0, []
        saved = torch.load(self.path, weights_only=True) if self.path.exists() else None
        if saved is None:
            log.info("embedding %d tokens", clip.VOCABULARY)
            torch.manual_seed(seed)
            initialise(self.model, first_rows(self.clip.tokenizer, self.teacher))
        self.mean = copy.deepcopy(self.model)
        decayed = [value for name, value in self.model.named_parameters() if value.dim() == 2 and "embed" not in name]
        others = [value for name, value in self.model.named_parameters() if value.dim() != 2 or "embed" in name]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.mean.load_state_dict(saved["mean"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.generator.set_state(saved["generator"])
            self.steps, self.seconds, self.curve = saved["steps"], saved["seconds"], saved["curve"]
            self.basis = saved["basis"]
        else:
            sample = self.teacher.embed([self.texts.draw() for _ in range(SAMPLE)])
            self.basis = torch.linalg.svd(sample, full_matrices=False).Vh[: clip.WIDTH].T.contiguous()

    def save(self, weights: Path) -> None:
        """The checkpoint, and the running mean as the lab's weights."""
        names = ("model", "mean", "optimiser")
        state = {name: getattr(self, name).state_dict() for name in names} | {"basis": self.basis}
        state |= {"steps": self.steps, "seconds": self.seconds, "curve": self.curve}
        part = self.path.with_suffix(".part")
        torch.save(state | {"generator": self.generator.get_state()}, part)
        part.replace(self.path)
        weights.parent.mkdir(exist_ok=True)
        minutes = round(self.seconds / 60)
        storage.save(
            self.mean.state_dict(),
            weights,
            {"steps": self.steps, "minutes": minutes, "date": date.today(), "licence": LICENCE},
        )

    def step(self, tokens: Tokens, targets: Tensor, bank: Bank, rate: float) -> float:
        """One update; returns the loss."""
        form = int(torch.randint(2, (1,), generator=self.generator))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(self.model, tokens, targets, bank.tokens[form], bank.targets[form], self.basis)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.steps += 1
        keep = min(0.998, (self.steps + 1) / (self.steps + 20))
        with torch.no_grad():
            for old, new in zip(self.mean.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
        return loss.item()


def train(folder: Path, minutes: float, seed: int, weights: Path) -> None:
    """Distil for so many minutes: new texts every few hundred steps, the rate falling in the last third."""
    torch.set_flush_denormal(True)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, seed)
    tokenizer = run.clip.tokenizer
    bank = Bank(tokenizer, run.teacher)
    started = last = time.monotonic()
    first, running, done = run.steps, None, 0.0
    log.info("begins at step %d", first)
    while done < 1:  # on the slowest machine, some steps at least
        drawn = sorted((run.texts.draw() for _ in range(POOL)), key=len)
        batches = []
        for start in range(0, POOL, BATCH):
            tokens, seen = tokens_of(tokenizer, drawn[start : start + BATCH])
            batches.append((tokens, run.teacher.embed(seen)))
        for number in torch.cat(
            [torch.randperm(len(batches), generator=run.generator) for _ in range(PASSES)]
        ).tolist():
            rate = RATE * min(1, (run.steps - first + 1) / 100) * min(1, max(0.02, 3 * (1 - done)))
            loss = run.step(*batches[number], bank, rate)
            running = loss if running is None else 0.98 * running + 0.02 * loss
            done = (time.monotonic() - started) / 60 / minutes
        run.seconds += time.monotonic() - last
        last = time.monotonic()
        run.curve.append((run.steps, run.seconds, running))
        log.info("step %d, %.0f%%, loss %.4f", run.steps, 100 * done, running)
        run.save(weights)


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab clip").parse_args(arguments)
    folder = options.folder or cache_folder() / "lab"
    train(folder, options.minutes, options.seed, options.weights or clip.PATH)
