"""What a user can put right."""

__all__ = ["Mistake"]


class Mistake(Exception):
    """Wrong arguments or data: its message is printed without a traceback, the exit code is 2."""
