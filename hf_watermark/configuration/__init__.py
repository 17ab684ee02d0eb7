"""What a method is told and what it says about itself: configs and facts."""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "CONFIG_NAME": "config",
    "WatermarkConfig": "config",
    "as_configs": "choosing",
    "require": "config",
    "require_target": "config",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .choosing import as_configs as as_configs
    from .config import CONFIG_NAME as CONFIG_NAME
    from .config import WatermarkConfig as WatermarkConfig
    from .config import require as require
    from .config import require_target as require_target
