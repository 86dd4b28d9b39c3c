"""The hypernet H(c, s): from the embedding of a prompt to low-rank weights of a diffusion model.

Read in this order: ``eraser`` (the equation), ``embedding`` and ``regressor`` (c), ``detector`` (when H is
applied), ``network`` and ``factors`` (H and its deltas), ``families`` and ``targets`` (the layers),
``deltas`` with ``factor_cache`` (the tokens of a prompt that get a delta), ``rows`` and ``patch`` (how a
ComfyUI model gets them; ``patch`` is the only door to ComfyUI), ``record`` and ``files`` (how an eraser is
kept), ``lora`` (export). ``published`` and ``conversion`` are for the weights of the paper's authors.
"""
