"""Errors that the user sees."""


class UserError(Exception):
    """An error whose message says in the user's words what to change.

    ComfyUI shows the type of an error with its module, and it names a pack's modules by the pack's path on the
    server. The subclasses give the pack's name in place of theirs.
    """

    def __init_subclass__(cls) -> None:
        cls.__module__ = "unhype"
