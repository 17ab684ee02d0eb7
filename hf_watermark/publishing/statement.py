"""`watermark/statement.json`: the owner's signed description of a marked model (PROTOCOL.md §2.4, §2.5)."""

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..evidence import LEVEL_B, LEVEL_N, Strength
from ..keys import (
    NO_BEACON,
    CommitmentProblem,
    ProblemKind,
    Share,
    common_spec,
    fingerprint,
    is_signed_by,
    public_subkeys,
)
from ..keys.schedule import precommit_hash
from ..serialization import canonical_json
from ..serialization.schema import (
    Date,
    Hex32,
    Hex64,
    Log2,
    RepoId,
    Slug,
    Strict,
    Text,
    parsed,
)
from .parts import Ancestor, CertificateClaim, Disclosed, Fidelity, MethodClaim, Point, Stamp, Survival, Weights
from .precommit import FOLDER


STATEMENT = f"{FOLDER}/statement.json"
DOMAIN = b"hf-watermark/statement/v2\x00"
LIMITS = {"B": LEVEL_B, "N": LEVEL_N}
# Keys that a dishonest claimant may have tried, as log2: with a beacon each try costs a public value, without one nothing but time.
TRIES_LOG2 = {"B": 34, "N": 64}


class Statement(Strict):
    """
    What the owner signs. Everything that can be recomputed is recomputed by the reader; the rest is a claim.

    Args:
        model_sha256 (`str`):
            Digest of the committed model record: architecture, class names and their order, normalisation.
        methods (`list[MethodClaim]`):
            All that the key commits to: with one left out, the precommit does not fit.
        opened_subkeys (`list[int]`):
            Sub-keys whose opening lies beside the statement on purpose. They are never evidence in a dispute.
        disclosed (`list[Disclosed]`):
            Sub-keys that were opened in disputes, or asked over a network, before the statement was signed.
        level (`str`):
            `B` or `N`: what the mark reached on the published model.
        false_positive_log2 (`int`):
            log2 of the chance that an unrelated model passes at that level, after all the tries that a claimant could have made.
        precommit_timestamps (`list[Stamp]`):
            Tokens over the precommit. They are older than the statement, so the signature covers them.
        original_tensor_set_sha256 (`str`, *optional*):
            Digest of an unmarked original that the owner keeps under seal for disputes.
        oms_public_key (`str`, *optional*):
            P-256 key (compressed point) of `model.sig`, if the folder was signed (OpenSSF Model Signing).
        supersedes (`str`, *optional*):
            SHA-256 of the statement that this one replaces.
        derived_from (`list[Ancestor]`):
            Keys that were in the model before this one: of its earlier versions, and of others' models that it was made from.
    """

    schema_: Annotated[Literal["hf-watermark/statement/v2"], Field(alias="schema")]
    library: Literal["hf_watermark"]
    library_version: Slug
    model_id: RepoId
    architecture: Slug
    created: Date
    public_key: Hex32
    precommit: Hex32
    precommit_timestamps: Annotated[list[Stamp], Field(max_length=8)]
    subkey_root: Hex32
    subkey_count: Annotated[int, Field(ge=1, le=1024)]
    spec_sha256: Hex32
    model_sha256: Hex32
    beacon: Hex32
    beacon_source: Text
    opened_subkeys: Annotated[list[Annotated[int, Field(ge=0, lt=1024)]], Field(max_length=16)]
    disclosed: Annotated[list[Disclosed], Field(max_length=1024)]
    weights: Weights
    methods: Annotated[list[MethodClaim], Field(min_length=1, max_length=32)]
    log2_p: Log2
    level: Literal["B", "N"]
    false_positive_log2: Log2
    fidelity: Fidelity | None
    survival: Annotated[list[Survival], Field(max_length=64)]
    certificates: Annotated[list[CertificateClaim], Field(max_length=8)]
    original_tensor_set_sha256: Hex32 | None
    oms_public_key: Point | None
    supersedes: Hex32 | None
    derived_from: Annotated[list[Ancestor], Field(max_length=16)]

    @model_validator(mode="after")
    def _coherent(self) -> "Statement":
        used = [index for method in self.methods for index in method.subkeys]
        if self.subkey_count & (self.subkey_count - 1):
            raise ValueError(f"subkey_count is {self.subkey_count}, no power of two")
        if len(set(used)) != len(used) or max(used) >= self.subkey_count:
            raise ValueError("sub-keys overlap or lie outside the tree")
        if not set(self.opened_subkeys) <= set(used) or len(set(self.opened_subkeys)) != len(self.opened_subkeys):
            raise ValueError("opened_subkeys names a sub-key that carries no mark")
        if not {entry.subkey for entry in self.disclosed} <= set(used):
            raise ValueError("disclosed names a sub-key that carries no mark")
        if any(method.matches > method.trials for method in self.methods):
            raise ValueError("a method has more matches than trials")
        before = [origin.precommit for origin in self.derived_from]
        if len(set(before)) != len(before) or self.precommit in before:
            raise ValueError("derived_from names a key twice, or this statement's own")
        return self

    def problems(self) -> list[CommitmentProblem]:
        """What the reader recomputes and finds otherwise; thresholds are never taken from the document (PROTOCOL.md §1.2, B11)."""
        found = []
        limit, bound = LIMITS[self.level], claim_bound_log2(self.level)

        def note(kind: ProblemKind, text: str) -> None:
            found.append(CommitmentProblem(kind, text))

        if self.log2_p > limit:
            note(
                ProblemKind.STATEMENT,
                f"it claims level {self.level}, which asks for log2 p <= {limit:.0f}, with {self.log2_p}",
            )
        if self.false_positive_log2 != bound:
            note(
                ProblemKind.STATEMENT,
                f"it states a false-positive bound of 2^{self.false_positive_log2}; level {self.level} has 2^{bound}",
            )
        if self.level == Strength.B and self.beacon == NO_BEACON.hex():
            note(ProblemKind.BEACON, "it claims level B without a beacon; without one level N is asked for")
        public_key, root, spec = (
            bytes.fromhex(text) for text in (self.public_key, self.subkey_root, self.spec_sha256)
        )
        if precommit_hash(public_key, root, self.subkey_count, spec).hex() != self.precommit:
            note(ProblemKind.TREE, "its precommit is not the digest of key, tree and methods")
        if common_spec(bytes.fromhex(self.model_sha256), self.shares) != spec:
            note(
                ProblemKind.METHODS,
                "its methods and model record are not those that were committed: one was left out, added or changed",
            )
        if parse_date(self.created) is None:
            note(ProblemKind.DATES, f"its date {self.created} does not exist")
        return found

    @property
    def shares(self) -> list[Share]:
        """The committed methods with their sub-keys."""
        return [Share(bytes.fromhex(method.spec_sha256), tuple(method.subkeys)) for method in self.methods]

    @property
    def public(self) -> frozenset[int]:
        """Sub-keys that anybody may know by this statement."""
        return frozenset(self.opened_subkeys) | public_subkeys(self.shares)

    @property
    def to_sign(self) -> bytes:
        """The bytes that are signed and timestamped: RFC 8785 JSON behind the name of the format."""
        return DOMAIN + canonical_json(self.plain())

    @property
    def digest(self) -> str:
        """SHA-256 of what is signed: the name by which the next statement supersedes this one."""
        return hashlib.sha256(self.to_sign).hexdigest()

    @property
    def fingerprint(self) -> str:
        return fingerprint(bytes.fromhex(self.public_key))


class SignedStatement(Strict):
    """
    The file: a statement, its Ed25519 signature, and timestamps over it. The timestamps are made after the signature and prove
    themselves, so they stand outside of it.
    """

    statement: Statement
    signature: Hex64
    timestamps: Annotated[list[Stamp], Field(max_length=8)] = []

    @classmethod
    def parse(cls, raw: bytes, name: str = "statement") -> "SignedStatement":
        """
        Raises:
            [`~serialization.InvalidInput`]: when the file is no such document; whether it is *true* is another question.
        """
        return parsed(cls, raw, name)

    @property
    def is_signed(self) -> bool:
        key, signature = bytes.fromhex(self.statement.public_key), bytes.fromhex(self.signature)
        return is_signed_by(key, self.statement.to_sign, signature)

    def to_bytes(self) -> bytes:
        return canonical_json(self.plain()) + b"\n"


def claim_bound_log2(level: str) -> int:
    """log2 of the chance that an unrelated model passes at a level, over all keys that the claimant may have tried before."""
    return int(LIMITS[level]) + TRIES_LOG2[level]


def format_date(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_date(text: str) -> datetime | None:
    """The moment of a [`~schema.Date`]; `None` for the 31st of February and its like."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
