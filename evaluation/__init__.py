"""Looking at what an eraser does: detections, pictures before and after, and the pages that show them.

``detection`` is the score report of a prompt; ``compare`` draws prompts with and without an eraser, and
``similarity`` rates the pictures. ``page`` with ``cards``, ``curves`` and ``bars`` lays them out for
``training_page`` and ``report_page``.
"""
