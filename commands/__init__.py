"""Commands for a shell, see ``train``."""
