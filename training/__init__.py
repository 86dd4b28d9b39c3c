"""Training a hypernet: prompts and the frozen model make a cache, task and losses drive the loop.

Read in this order: ``prompts``, ``losses``, ``cache``, ``loop``, ``run``. ``frozen`` is the only
door to ComfyUI.
"""
