"""Owner, key tree, openings and integer streams (protocol.md §2.2, §4.3)."""

from .backup import export_key, import_key
from .claim import Assignment, Claim, SubKey
from .envelope import WrongPassphrase
from .folders import refuse_keys_inside, refuse_model_folder
from .opening import Opening
from .owner import Owner, fingerprint, is_signed_by
from .schedule import NO_BEACON, STREAM_NAMES, Stream
from .watermark_key import WatermarkKey


__all__ = [
    "NO_BEACON",
    "STREAM_NAMES",
    "Assignment",
    "Claim",
    "Opening",
    "Owner",
    "Stream",
    "SubKey",
    "WatermarkKey",
    "WrongPassphrase",
    "export_key",
    "fingerprint",
    "import_key",
    "is_signed_by",
    "refuse_keys_inside",
    "refuse_model_folder",
]
