"""Owner, key tree, openings and integer streams (PROTOCOL.md §2.2, §4.3)."""

from .backup import export_key, import_key
from .burnt import BURNT_FILE, BurntEntry, burn, burnt_log, burnt_subkeys
from .claim import (
    OLD_FORMAT,
    PUBLIC_SUBKEY,
    Assignment,
    Claim,
    Share,
    SubKey,
    common_spec,
    pool_digest,
    public_subkeys,
    share_problems,
)
from .context import ModelContext, start_digest
from .envelope import WrongPassphrase
from .folders import key_inside, model_around, refuse_keys_inside, refuse_model_folder
from .given import refuse_unloaded
from .opening import Opening
from .owner import Owner, fingerprint, is_signed_by
from .problems import CommitmentProblem, ProblemKind, in_words
from .schedule import NO_BEACON, STREAM_NAMES, Stream
from .watermark_key import PRECOMMIT_DOMAIN, PRECOMMIT_SCHEMA, WatermarkKey


__all__ = [
    "BURNT_FILE",
    "NO_BEACON",
    "OLD_FORMAT",
    "PRECOMMIT_DOMAIN",
    "PRECOMMIT_SCHEMA",
    "PUBLIC_SUBKEY",
    "STREAM_NAMES",
    "Assignment",
    "BurntEntry",
    "Claim",
    "CommitmentProblem",
    "ModelContext",
    "Opening",
    "Owner",
    "ProblemKind",
    "Share",
    "Stream",
    "SubKey",
    "WatermarkKey",
    "WrongPassphrase",
    "burn",
    "burnt_log",
    "burnt_subkeys",
    "common_spec",
    "export_key",
    "fingerprint",
    "import_key",
    "in_words",
    "is_signed_by",
    "key_inside",
    "model_around",
    "pool_digest",
    "public_subkeys",
    "refuse_keys_inside",
    "refuse_model_folder",
    "refuse_unloaded",
    "share_problems",
    "start_digest",
]
