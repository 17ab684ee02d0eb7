"""
Reading a model folder of the user's own.

transformers is imported where a model is built: most commands read weights only.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..serialization import InvalidInput, SafetensorsFolder
from ..serialization.kinds import MODEL, Kind, kind_of_weights, refusal


if TYPE_CHECKING:
    from transformers import PreTrainedModel


PREPROCESSOR = "preprocessor_config.json"


def silence_loading() -> None:
    """No notes and bars of transformers: what matters about a model that does not fit is in our errors."""
    from huggingface_hub.utils import disable_progress_bars

    # Read when transformers is imported, which most commands never do.
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    # torch tells of types of torchao that it knows by itself by now.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    disable_progress_bars()
    imported = sys.modules.get("transformers.utils.logging")
    if imported is not None:
        imported.set_verbosity_error()
        imported.disable_progress_bar()


def refuse_no_model(folder: Path) -> SafetensorsFolder:
    """
    The tensors in a folder, unread.

    Raises:
        [`~serialization.InvalidInput`]: when it holds no model.
    """
    if not folder.exists():
        raise InvalidInput(
            f"{folder}: no such folder; download the model first (`hf download`), names of the Hub are not read here"
        )
    if folder.suffix == ".safetensors" and folder.is_file():
        raise InvalidInput(f"{folder}: is a file; give the folder {folder.parent}, in which its config.json lies")
    tensors = SafetensorsFolder(folder)
    if not (folder / "config.json").is_file():
        bare = Kind("holds weights and no config.json, so the model cannot be built")
        raise refusal(folder, kind_of_weights(tensors.beside) or bare, MODEL)
    return tensors


def load_model(folder: Path) -> "PreTrainedModel":
    """
    The image-classification or semantic-segmentation model in a local folder, with every weight checked: read from the file, of the shape that
    `config.json` asks for, finite.

    Raises:
        [`~serialization.InvalidInput`]: when the folder holds no such model.
    """
    tensors = refuse_no_model(folder)
    for _ in tensors.values():
        pass  # reading a tensor refuses NaN and infinite values

    from transformers import AutoConfig

    from ..backbones import auto_class
    from ..backbones.wrappers import register_wrappers

    silence_loading()
    register_wrappers()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, info = auto_class(config).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except (OSError, TypeError, ValueError) as error:  # a TypeError where config.json is no table
        raise InvalidInput(f"{folder}: {error}") from None
    lost = sorted({*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])})
    if lost:
        raise InvalidInput(
            f"{folder}: {len(lost)} tensors that config.json asks for are missing or of another shape, first {lost[0]!r}"
        )
    return model
