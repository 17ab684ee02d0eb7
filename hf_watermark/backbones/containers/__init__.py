"""Model files of other libraries as mappings of weights: GGUF, and the constants of ONNX graphs."""

from .choosing import container_in, open_container


__all__ = ["container_in", "open_container"]
