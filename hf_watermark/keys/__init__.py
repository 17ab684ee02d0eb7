"""Owner, key tree, openings and integer streams (protocol.md §2.2, §4.3)."""

from .envelope import WrongPassphrase
from .opening import Opening
from .owner import Owner, fingerprint, is_signed_by
from .schedule import NO_BEACON, STREAM_NAMES, Stream
from .watermark_key import Assignment, Claim, SubKey, WatermarkKey, refuse_keys_inside, refuse_model_folder


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
    "fingerprint",
    "is_signed_by",
    "refuse_keys_inside",
    "refuse_model_folder",
]
