"""The one place where seeds, secrets and identities get their randomness."""

import os


def draw(count: int) -> bytes:
    """`count` bytes from the operating system. Call it as `entropy.draw(32)`: tests put a stream of theirs here."""
    return os.urandom(count)
