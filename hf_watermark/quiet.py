"""What other libraries say while they are imported, and no user of this one can change."""

import logging
from enum import EnumType


def silence_imports() -> None:
    """
    Keeps two lines of torch from the user: transformers imports torchao wherever a model is built, and that registers enumerations with torch
    in a way that torch calls outdated.
    """
    logging.getLogger("torch.utils._pytree").addFilter(_is_not_about_an_enumeration)


def _is_not_about_an_enumeration(record: logging.LogRecord) -> bool:
    return not (isinstance(record.args, tuple) and record.args and isinstance(record.args[0], EnumType))
