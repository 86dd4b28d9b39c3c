"""The hypernet H(c, s): from the embedding of a prompt to low-rank weights of a diffusion model.

Read in this order: ``embedding`` (what drives H), ``network`` (H itself), ``factors`` (the deltas it
writes), ``deadzone`` (when a delta counts as none), ``writer`` (which tokens of a prompt get one),
``families`` and ``targets`` (which layers), ``patch`` (how a ComfyUI model gets them), ``files`` and
``description`` (how they are kept). ``tokens`` drives H where a text encoder has no pooled vector;
``published`` and ``conversion`` are for the weights of the paper's authors.
"""
