"""How others store a model: weights in several tensors, packed codes, files of other libraries. Each is undone, or named."""

from .view import Decoded, decoded


__all__ = ["Decoded", "decoded"]
