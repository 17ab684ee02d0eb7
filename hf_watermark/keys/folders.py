"""Secrets and published files live apart: where a key folder may lie, and where it may not."""

from pathlib import Path


KEY_FILE, POOL_FILE = "key.json", "pool.safetensors"


def refuse_model_folder(folder: Path) -> None:
    """Raises when `folder` is inside a model or checkpoint folder."""
    resolved = folder.resolve()
    for parent in (resolved, *resolved.parents):
        published = [name for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "trainer_state.json")
                     if (parent / name).exists()]  # fmt: skip
        if published:
            raise ValueError(
                f"{folder} lies inside a model folder ({parent / published[0]} exists) and would be published with it; "
                "save the key beside the model, for example in `keys/`"
            )


def refuse_keys_inside(folder: Path) -> None:
    """Raises when a key file lies in a folder that is about to be saved as a model, and so would be published with it."""
    for path in folder.rglob(KEY_FILE):
        raise ValueError(
            f"{path} is a secret inside the model folder {folder}; move it out, for example to `keys/`, and save again"
        )
