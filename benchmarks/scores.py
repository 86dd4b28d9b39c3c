"""The numbers of the erasure benchmark, from what the judges see on pictures."""

import torch


def h_o(acc_e, acc_s, acc_g):
    """The paper's harmonic mean over efficacy, specificity and generality; 0 when one of them fails."""
    return _harmonic(1 - acc_e, acc_s, 1 - acc_g)


def h_c(acc_e, acc_s):
    """The same over efficacy and specificity, for many concepts at once."""
    return _harmonic(1 - acc_e, acc_s)


def _harmonic(*parts):
    return len(parts) / sum(1 / part for part in parts) if min(parts) > 0 else 0.0


def accuracies(rows):
    """Acc_e, Acc_s and Acc_g of one class from its rows, by picture: dicts with `kind` and `values`."""
    found = []
    for kind in ("erased", "other", "synonym"):
        values = [value for row in rows if row["kind"] == kind for value in row["values"]]
        found.append(sum(values) / len(values))
    return tuple(found)


def mean_h_o(classes):
    """The mean of H_o over classes, each a list of rows."""
    return sum(h_o(*accuracies(rows)) for rows in classes) / len(classes)


def bootstrap(classes, rounds=1000, seed=0):
    """The 95% interval of `mean_h_o` when classes, and pictures within prompts, are drawn again: (low, high)."""
    generator = torch.Generator().manual_seed(seed)
    kinds = ("erased", "other", "synonym")
    grids = []
    for rows in classes:
        # A table a kind, prompts by pictures.
        grids.append([torch.tensor([row["values"] for row in rows if row["kind"] == kind]) for kind in kinds])
    means = torch.empty(rounds)
    for turn in range(rounds):
        total = 0.0
        for chosen in torch.randint(len(grids), (len(grids),), generator=generator).tolist():
            drawn = [
                grid.gather(1, torch.randint(grid.shape[1], grid.shape, generator=generator)).mean().item()
                for grid in grids[chosen]
            ]
            total += h_o(*drawn)
        means[turn] = total / len(grids)
    return tuple(torch.quantile(means, torch.tensor([0.025, 0.975])).tolist())


def auc(positive, negative):
    """The area under the ROC curve of a score: how often a positive one beats a negative one, ties by half."""
    positive, negative = torch.as_tensor(positive), torch.as_tensor(negative)
    difference = positive.unsqueeze(1) - negative.unsqueeze(0)
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


def wilson(hits, total, z=1.96):
    """The 95% interval of a share by Wilson's score, (low, high); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    half = z * ((share * (1 - share) + spread / 4) / total) ** 0.5
    return max((share + spread / 2 - half) / (1 + spread), 0.0), min((share + spread / 2 + half) / (1 + spread), 1.0)
