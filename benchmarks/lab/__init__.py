"""The lab: a small text-to-image model, real in every way but size, on which erasure is measured."""
