"""
The model wrappers of this package, which a config may name as it names any type of transformers.

Their classes belong to methods and attacks, floors above this one: `mapping`, above both, says where they are, and they load when they are
asked for.
"""

from importlib import import_module


# The module of each model type.
WRAPPERS: dict[str, str] = {}


def register_wrapper(model_type: str) -> None:
    """Makes transformers know a wrapper of this package; any other type is left alone."""
    if model_type in WRAPPERS:
        import_module(WRAPPERS[model_type])


def register_wrappers() -> None:
    """All of them, before a folder is loaded whose config was not read yet."""
    for model_type in WRAPPERS:
        register_wrapper(model_type)
