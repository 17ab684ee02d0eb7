"""
The model wrappers of this package, which a config may name as it names any type of transformers.

Their classes belong to methods and attacks, floors above this one, so they stand here by name and load when they are asked for.
"""

from importlib import import_module


WRAPPERS = {
    "hf_watermark_perturbed_output": "methods.soft_label.modeling",
    "hf_watermark_preprocessed": "attacks.preprocessing",
    "hf_watermark_smoothed": "methods.certified.modeling",
}


def register_wrapper(model_type: str) -> None:
    """Makes transformers know a wrapper of this package; any other type is left alone."""
    if model_type in WRAPPERS:
        import_module(f"hf_watermark.{WRAPPERS[model_type]}")


def register_wrappers() -> None:
    """All of them, before a folder is loaded whose config was not read yet."""
    for model_type in WRAPPERS:
        register_wrapper(model_type)
