"""
The signature of a drand round: what makes its value belong to the chain whatever a relay says. Needs the extra `beacon` (py_ecc).

Schemes, by the length of the chain's public key: 96 bytes, a key on G2 and signatures on G1 over the round's number
(`bls-unchained-g1-rfc9380`); 48 bytes, a key on G1 and signatures on G2 over the signature before and the number (`pedersen-bls-chained`).
"""

import hashlib
from typing import Any

from ..serialization import InvalidInput


# In a variable: py_ecc declares the function's type as that of its result.
SHA256: Any = hashlib.sha256
DST_G1 = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
DST_G2 = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_"
G1_BYTES, G2_BYTES = 48, 96


def is_signed_round(public_key: bytes, number: int, signature: bytes, previous: bytes = b"") -> bool:
    """
    Whether a chain signed a round; takes about a second, in pure Python.

    Args:
        public_key (`bytes`):
            Of the chain, compressed: 48 or 96 bytes.
        number (`int`):
            The round.
        signature (`bytes`):
            96 or 48 bytes, compressed.
        previous (`bytes`, *optional*):
            Signature of the round before, on chained schemes.

    Raises:
        `ImportError`: without py_ecc.
    """
    try:
        from py_ecc.bls.hash_to_curve import hash_to_G1, hash_to_G2
        from py_ecc.optimized_bls12_381 import FQ12, G1, G2, final_exponentiate, neg, pairing
    except ImportError as error:
        raise ImportError("signatures of drand rounds need py_ecc: pip install 'hf-watermark[beacon]'") from error
    counted = number.to_bytes(8, "big")
    try:
        if len(public_key) == G2_BYTES:
            message: Any = hash_to_G1(hashlib.sha256(counted).digest(), DST_G1, SHA256)
            pairs = [(G2, _point_on_g1(signature)), (neg(_point_on_g2(public_key)), message)]
        else:
            message = hash_to_G2(hashlib.sha256(previous + counted).digest(), DST_G2, SHA256)
            pairs = [(_point_on_g2(signature), G1), (message, neg(_point_on_g1(public_key)))]
    except (ValueError, InvalidInput):
        return False
    product = FQ12.one()
    for on_g2, on_g1 in pairs:
        product = product * pairing(on_g2, on_g1, final_exponentiate=False)
    return final_exponentiate(product) == FQ12.one()


def _point_on_g1(raw: bytes) -> Any:
    from py_ecc.bls.point_compression import decompress_G1

    if len(raw) != G1_BYTES:
        raise InvalidInput(f"a point on G1 has {G1_BYTES} bytes, not {len(raw)}")
    return _in_subgroup(decompress_G1(int.from_bytes(raw, "big")))  # type: ignore[arg-type]


def _point_on_g2(raw: bytes) -> Any:
    from py_ecc.bls.point_compression import decompress_G2

    if len(raw) != G2_BYTES:
        raise InvalidInput(f"a point on G2 has {G2_BYTES} bytes, not {len(raw)}")
    halves = (int.from_bytes(raw[:G1_BYTES], "big"), int.from_bytes(raw[G1_BYTES:], "big"))
    return _in_subgroup(decompress_G2(halves))  # type: ignore[arg-type]


def _in_subgroup(point: Any) -> Any:
    from py_ecc.bls.g2_primitives import subgroup_check
    from py_ecc.optimized_bls12_381 import is_inf

    if is_inf(point) or not subgroup_check(point):
        raise InvalidInput("a point outside the prime-order subgroup")
    return point
