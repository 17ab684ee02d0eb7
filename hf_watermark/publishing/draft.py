"""What a commit will hold: files, statement and card, put together before anything is written to the Hub."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..evidence import Evidence
from ..keys import Owner, WatermarkKey, refuse_keys_inside
from ..serialization import InvalidInput
from ..suspects.source import Source
from .card import add_tags, tags_of, watermark_card, with_metadata, without_section
from .contents import container
from .cost import cost_line
from .describe import Content, Extras, config_of, dated, describe, opened_files, opened_subkeys, superseded
from .files import CARD, CARD_BYTES, SIGNATURE, Selection, model_files
from .precommit import FOLDER, PRECOMMIT, Precommit
from .revocation import REVOCATION, Revocations
from .scan import Scanner, refuse_key_files, refuse_secrets, secrets_of
from .statement import STATEMENT, SignedStatement
from .targets import below_target
from .timestamp import SUFFIX, TOKEN_BYTES


ReadMark = Callable[[Path], Evidence]


@dataclass
class Draft:
    """
    A model folder whose files were chosen and searched for secrets, and whose mark was read. Nothing has left the machine.

    Args:
        evidence ([`Evidence`], *optional*): What `read_mark` found in the folder.
        signer ([`Owner`], *optional*): Who signs the statement; `None` where there will be none.
    """

    selected: Selection
    key: WatermarkKey
    evidence: Evidence | None
    signer: Owner | None
    extras: Extras
    opened: list[int]
    scanner: Scanner


@dataclass
class Contents:
    """All files of the commit, and what is said about them."""

    files: dict[str, Content]
    statement: SignedStatement | None = None
    card: str | None = None
    warnings: list[str] = field(default_factory=list)


def draft(
    folder: Path,
    key: WatermarkKey,
    owner: Owner | None,
    read_mark: ReadMark | None,
    extras: Extras,
    include: Iterable[str] = (),
) -> Draft:
    """Everything that can be done and refused without the Hub; arguments as of [`~publishing.publish`]."""
    if read_mark is not None and not callable(read_mark):
        raise InvalidInput(
            f"read_mark is a function that reads the mark from the folder, not {type(read_mark).__name__}: evidence that was read earlier "
            "says nothing about these files. Give for example read_mark=lambda folder: verify(folder, key)"
        )
    if owner is not None and read_mark is not None and owner.public_key != key.public_key:
        raise InvalidInput(f"the key belongs to another owner than {owner.fingerprint}; give the owner who made it")
    refuse_keys_inside(folder)
    selected = model_files(folder, include)
    evidence = None if read_mark is None else read_mark(folder)
    signer = owner if evidence is not None and evidence.found else None
    weak = below_target(key, evidence) if signer and evidence and not extras.allow_weak else []
    if weak:
        raise InvalidInput(
            f"{'; '.join(weak)}. Train longer, or publish it as it is: `Extras(allow_weak=True)`, `--allow-weak`"
        )
    opened = opened_subkeys(key) if signer else []
    scanner = Scanner(secrets_of(key, opened, owner))
    refuse_secrets(selected.files, scanner)
    refuse_key_files(folder, selected.skipped, scanner)
    if selected.card is not None:
        refuse_secrets({CARD: selected.card.encode()}, scanner)
    return Draft(selected, key, evidence, signer, extras, opened, scanner)


def contents(drafted: Draft, repo_id: str, remote: Source, license: str | None = None) -> Contents:
    """What is committed on top of `remote`."""
    key, extras, selected = drafted.key, drafted.extras, drafted.selected
    files = dict(selected.files)
    added: dict[str, Content] = {PRECOMMIT: Precommit.of(key).to_bytes()}
    added |= precommit_tokens(selected.folder, remote, extras)
    added |= known_revocations(selected.folder, remote)
    signed = None
    if drafted.signer is not None and drafted.evidence is not None:
        added |= opened_files(key, drafted.opened, extras)
        if extras.signing_key is not None:
            from .signing import sign_files

            added[SIGNATURE] = sign_files(files, extras.signing_key)
        older = superseded(remote, key)
        statement = describe(files, selected.folder, repo_id, key, drafted.evidence, extras, added, older)
        stated = {item.path: item.sha256 for item in statement.weights.files}
        selected.refuse_changed(
            "while its mark was read",
            {name: stated[name] for name, content in selected.files.items() if isinstance(content, Path)},
        )
        signature = drafted.signer.sign(statement.to_sign).hex()
        signed, tokens = dated(SignedStatement(statement=statement, signature=signature), extras.timestamps)
        added |= tokens | {STATEMENT: signed.to_bytes()}
    text, warnings = card(drafted, repo_id, remote, signed, license)
    if text is not None:
        added[CARD] = text.encode()
    refuse_secrets(added, drafted.scanner)
    return Contents(files | added, signed, text, warnings)


def precommit_tokens(folder: Path, remote: Source, extras: Extras) -> dict[str, bytes]:
    """Timestamps over the precommit: those given, beside the model, or already in the repository."""
    tokens = {}
    for name in remote.sizes:
        if name.startswith(f"{FOLDER}/precommit") and name.endswith(SUFFIX):
            tokens[name] = remote.read(name, TOKEN_BYTES) or b""
    for path in sorted((folder / FOLDER).glob(f"precommit*{SUFFIX}")):
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file() or path.stat().st_size > TOKEN_BYTES:
            raise InvalidInput(f"{path}: is a link, or too large for a timestamp; nothing was uploaded")
        if container(path) is not None:
            raise InvalidInput(f"{path}: is {container(path)}, not a timestamp; nothing was uploaded")
        tokens[f"{FOLDER}/{path.name}"] = path.read_bytes()
    tokens |= {f"{FOLDER}/{name}": raw for name, raw in extras.precommit_tokens.items()}
    for name, raw in tokens.items():
        if not raw.startswith(b"\x30"):  # DER of a sequence (RFC 3161, 2.4.2)
            raise InvalidInput(f"{name}: is no timestamp token; nothing was uploaded")
    return tokens


def known_revocations(folder: Path, remote: Source) -> dict[str, bytes]:
    """Those beside the model and those already in the repository: none is ever taken out by publishing again."""
    path = folder / REVOCATION
    here = Revocations.read(path) if path.exists() or path.is_symlink() else Revocations()
    raw = remote.read(REVOCATION)
    there = () if raw is None else Revocations.parse(raw, f"{remote.name}: {REVOCATION}").entries
    found = here.with_(there)
    return {REVOCATION: found.to_bytes()} if found.entries else {}


def card(
    drafted: Draft, repo_id: str, remote: Source, signed: SignedStatement | None, license: str | None
) -> tuple[str | None, list[str]]:
    """
    The folder's card, else the repository's, with metadata and, if there is a statement, its Watermark section; tags of both. Where nobody
    wrote a card and nothing is claimed there is none.
    """
    local, theirs = drafted.selected.card, existing_card(remote)
    text = local if local is not None else theirs
    if text is None and signed is None:
        return None, []
    text = text if text is not None and text.strip() else f"# {repo_id.split('/')[-1]}\n"
    text, warnings = with_metadata(text, config_of(drafted.selected.files), license)
    if signed is not None:
        try:
            cost = cost_line(drafted.selected.folder, signed.statement)
        except InvalidInput as error:
            cost = None
            warnings.append(f"{error}; the card says nothing of it")
        stamps = {"precommit": signed.statement.precommit_timestamps, "statement": signed.timestamps}
        text = watermark_card(
            signed, text, [f"{len(found)} over the {name}" for name, found in stamps.items() if found], cost
        )
    else:
        text = without_section(text)
    return add_tags(text, tags_of(theirs)), warnings


def existing_card(remote: Source) -> str | None:
    raw = remote.read(CARD, CARD_BYTES)
    return None if raw is None else raw.decode("utf-8", errors="replace")
