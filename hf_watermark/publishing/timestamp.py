"""RFC 3161 timestamps: asking an authority for a token, and reading one from a stranger (extra `timestamp`)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from huggingface_hub.utils import get_session

from ..serialization import InvalidInput
from ..suspects.errors import hub_errors


TOKEN_BYTES = 65_536
SUFFIX = ".tsr"


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise ImportError("timestamps need the extra `timestamp`: pip install 'hf-watermark[timestamp]'") from None
    return rfc3161_client


def request_token(url: str, message: bytes, timeout: float = 30.0) -> bytes:
    """
    A token over `message` from the authority at `url`. The authority sees its SHA-512 only.

    Returns:
        `bytes`: The raw response (DER), to be stored as it is. Its signature is checked when it is read, against an authority that
        the reader trusts.

    Raises:
        [`~serialization.InvalidInput`]: when the authority cannot be reached, refuses, or dates something else.
    """
    library = _library()
    request = library.TimestampRequestBuilder(data=message).build()
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    with hub_errors(url):
        answer = get_session().post(url, content=request.as_bytes(), headers=headers, timeout=timeout)
    if answer.status_code != 200 or len(answer.content) > TOKEN_BYTES:
        raise InvalidInput(
            f"{url}: no token (HTTP {answer.status_code}, {len(answer.content)} bytes); try another authority"
        )
    response = _decoded(answer.content, url)
    if response.status != 0:
        raise InvalidInput(f"{url}: the authority refused ({', '.join(response.status_string) or response.status})")
    if (
        response.tst_info.nonce != request.nonce
        or _imprint(response, message) != response.tst_info.message_imprint.message
    ):
        raise InvalidInput(f"{url}: the token is not an answer to this question; try another authority")
    return answer.content


@dataclass(frozen=True)
class TokenTime:
    """When something existed already, and who says so (issuer and serial number of the authority's certificate)."""

    moment: datetime
    authority: str


def read_token(raw: bytes, message: bytes, roots: Sequence[x509.Certificate], name: str = "timestamp") -> TokenTime:
    """
    When `message` existed already, by the word of an authority under one of `roots`.

    Raises:
        [`~serialization.InvalidInput`]: when the token is malformed, dates something else, or was signed by nobody that is trusted.
    """
    library = _library()
    response = _decoded(raw, name)
    try:
        if _imprint(response, message) != response.tst_info.message_imprint.message:
            raise InvalidInput(f"{name}: dates something else")
        builder = library.VerifierBuilder(roots=list(roots))
        builder.build().verify_message(response, message)
        moment = response.tst_info.gen_time
        [signer] = response.signed_data.signer_infos
    except InvalidInput:
        raise
    except Exception as error:  # the library raises several kinds for hostile tokens
        raise InvalidInput(f"{name}: not signed by a trusted authority, or damaged ({_short(error)})") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return TokenTime(moment, f"{signer.issuer.rfc4514_string()} {signer.serial_number:x}")


def token_beacon(raw: bytes, name: str = "timestamp") -> bytes:
    """
    A public random value that nobody knew before the token was made: SHA-256 of the authority's signature. The signature only: the rest
    of the file could be varied at will.
    """
    from asn1crypto import cms

    response = _decoded(raw, name)
    try:
        signers = cms.ContentInfo.load(response.time_stamp_token(), strict=True)["content"]["signer_infos"]
        if len(signers) != 1:
            raise InvalidInput(f"{name}: has {len(signers)} signers, expected one")
        return hashlib.sha256(signers[0]["signature"].native).digest()
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"{name}: no token ({_short(error)})") from None


def read_roots(paths: Sequence[Path]) -> list[x509.Certificate]:
    """Certificates (PEM) of the authorities that the reader trusts."""
    roots: list[x509.Certificate] = []
    for path in paths:
        try:
            roots += x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{path}: no file of PEM certificates ({_short(error)})") from None
    return roots


def _decoded(raw: bytes, name: str) -> Any:
    if len(raw) > TOKEN_BYTES:
        raise InvalidInput(f"{name}: has {len(raw)} bytes, limit {TOKEN_BYTES}")
    try:
        response = _library().decode_timestamp_response(raw)
        if response.status == 0:
            response.tst_info, response.signed_data  # noqa: B018  parsed only when asked for
        return response
    except ImportError:
        raise
    except Exception as error:
        raise InvalidInput(f"{name}: not a timestamp token ({_short(error)})") from None


def _imprint(response: Any, message: bytes) -> bytes | None:
    names = {
        "2.16.840.1.101.3.4.2.1": "sha256",
        "2.16.840.1.101.3.4.2.2": "sha384",
        "2.16.840.1.101.3.4.2.3": "sha512",
    }
    name = names.get(response.tst_info.message_imprint.hash_algorithm.dotted_string)
    return hashlib.new(name, message).digest() if name else None


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
