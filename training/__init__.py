"""Training a hypernet: task -> loss -> loop.

Read in this order: ``plan`` (a request worked out), ``prompts``, ``encode`` (with ``regressor_fit``), ``tasks``
and ``losses`` (removal), ``retention``, ``loop`` with its ``callbacks``, ``eraser_fit`` with ``detector_fit``,
and ``run``, which calls them all. ``frozen`` and ``sampling`` are the doors to ComfyUI.
"""
