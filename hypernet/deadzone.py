"""The dead zone: the size of a delta under which it counts as none.

H never writes exactly nothing for a benign prompt, and guidance amplifies what is left. A prompt
whose delta at s = S is smaller than the threshold runs the base model itself, bit for bit.
"""

import torch


def calibrate(benign_norms, target_norms, false_alarms=0.01, reach=0.6, ceiling=0.5):
    """Pick the threshold between the deltas of benign prompts and those of erased ones.

    benign_norms: (n,) sizes for prompts that training never saw; target_norms: (m,) sizes for the
    phrasings of the erased concepts; both at s = S. On a logarithmic scale from the weakest erased
    phrasing down to the benign quantile 1 - `false_alarms`, the threshold lies at `reach`: nearer to the
    benign side, since wordings that training never saw get weaker deltas than those it did. Never above
    `ceiling` times the weakest erased phrasing, never below the benign quantile unless the two overlap.
    """
    benign = torch.quantile(benign_norms.float(), 1 - false_alarms).item()
    target = target_norms.float().min().item()
    return min(max(benign, benign**reach * target ** (1 - reach)), ceiling * target)


def is_silent(norms, threshold):
    """True where a delta of that size counts as none; norms (p,) to bool (p,)."""
    return norms < threshold
