"""The bytes of the tensors that an operation makes, on the meta device too."""

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """While open, counts the bytes of every new storage; those of the meta device count as if they were real."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = {one.untyped_storage()._cdata for one in tree_leaves((arguments, keywords)) if hasattr(one, "dim")}
        result = function(*arguments, **(keywords or {}))
        for one in tree_leaves(result):
            if hasattr(one, "untyped_storage") and one.untyped_storage()._cdata not in given:
                self.bytes += one.untyped_storage().nbytes()
        return result
