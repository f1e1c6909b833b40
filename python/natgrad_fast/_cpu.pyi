"""
Private: instruction sets of this processor, built for any processor.
"""
from __future__ import annotations
__all__: list[str] = ['levels']
def levels() -> tuple:
    """
    The x86-64 levels that processor and operating system have, lowest first.
    """
