"""The published test vector of the key schedule, recomputed from RFC 5869 by hand, and the rules of the tree and the streams."""

import hashlib
import hmac
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from hf_watermark.keys import STREAM_NAMES, Share, Stream, common_spec, schedule


# The vector of schedule 2. HKDF-SHA-256; it changes only with the version of the schedule.
SEED = bytes(range(32))
PUBLIC_KEY = bytes(32)
# The methods of a key in its precommit: digest of the model record, then per method its salted digest and its sub-keys.
MODEL, SPEC_OF_0, SPEC_OF_1 = (hashlib.sha256(text).digest() for text in (b"model", b"first", b"second"))
SHARES = [Share(SPEC_OF_0, (0, 1)), Share(SPEC_OF_1, (2, 3))]
BEACON = hashlib.sha256(b"beacon").digest()
METHOD, VERSION, COUNT, LEAF = "greedy_residuals", "1", 4, 2
ROOT = "ef93cc9924f83c4054b84d2cdae5d95c34f3005e9903c25e804a3b44ed8d0fa3"
COMMON = "c2d8f68adabf740f2916093b56efa1445ffa685de2484a8a22b067e3a7faf3ac"
PRECOMMIT = "033623fabc128df989b60e87edb5cbe6cb8e8f492314246f768747d75d7e56fa"
SUBKEY_2 = "6a43f98304d715c0db211ffbadea3c9a3a87057081bc8f985ee0087075841181"
BITS = "11010001101100111000000001100010"
BELOW_A_MILLION = [729048, 179665, 300424, 952456, 367552]
PERMUTATION_OF_8 = [0, 1, 5, 6, 2, 4, 7, 3]


# --- An independent implementation, straight from the RFCs ------------------------------------------------------------


def enc(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.new(salt, secret, hashlib.sha256).digest()


def hkdf_expand_32(key: bytes, info: bytes) -> bytes:
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()  # T(1) is all of 32 bytes


def straight_leaf(index: int) -> tuple[bytes, bytes, bytes]:
    number = struct.pack(">I", index)
    secret = hkdf_expand_32(SEED, enc(b"hfwm/v2/leaf", number))
    blind = hkdf_expand_32(SEED, enc(b"hfwm/v2/blind", number))
    return secret, blind, hashlib.sha256(b"\x00" + enc(b"hfwm/v2/leaf", number, secret, blind)).digest()


def straight_root() -> bytes:
    a, b, c, d = (straight_leaf(index)[2] for index in range(4))
    left, right = hashlib.sha256(b"\x01" + a + b).digest(), hashlib.sha256(b"\x01" + c + d).digest()
    return hashlib.sha256(b"\x01" + left + right).digest()


def straight_spec() -> bytes:
    first, second = (
        enc(spec, *(struct.pack(">I", index) for index in subkeys))
        for spec, subkeys in ((SPEC_OF_0, (0, 1)), (SPEC_OF_1, (2, 3)))
    )
    return hashlib.sha256(enc(b"hfwm/v2/spec", MODEL, first, second)).digest()


def straight_precommit() -> bytes:
    count = struct.pack(">I", COUNT)
    return hashlib.sha256(enc(b"hfwm/v2/precommit", PUBLIC_KEY, straight_root(), count, straight_spec())).digest()


def straight_subkey() -> bytes:
    secret = straight_leaf(LEAF)[0]
    info = enc(b"hfwm/v2/subkey", struct.pack(">I", LEAF), METHOD.encode(), VERSION.encode(), straight_precommit())
    return hkdf_expand_32(hkdf_extract(enc(BEACON, PUBLIC_KEY), secret), info)


def straight_stream(name: str, count: int) -> bytes:
    key = hkdf_expand_32(straight_subkey(), enc(b"hfwm/v2/stream", name.encode()))
    return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(count))


def our_subkey() -> bytes:
    secret = schedule.leaf_secret(SEED, LEAF)
    return schedule.derive_subkey(secret, BEACON, PUBLIC_KEY, LEAF, METHOD, VERSION, our_precommit())


def our_precommit() -> bytes:
    return schedule.precommit_hash(PUBLIC_KEY, our_levels()[-1][0], COUNT, common_spec(MODEL, SHARES))


def our_levels() -> list[list[bytes]]:
    leaves = [
        schedule.leaf_hash(index, schedule.leaf_secret(SEED, index), schedule.leaf_blind(SEED, index))
        for index in range(COUNT)
    ]
    return schedule.merkle_levels(leaves)


def test_published_vector():
    root = our_levels()[-1][0]
    assert root.hex() == ROOT == straight_root().hex()
    assert common_spec(MODEL, SHARES).hex() == COMMON == straight_spec().hex()
    assert our_precommit().hex() == PRECOMMIT == straight_precommit().hex()
    assert our_subkey().hex() == SUBKEY_2 == straight_subkey().hex()


def test_published_streams():
    bits = "".join(f"{byte:08b}" for byte in straight_stream("bits", 4))
    assert "".join(map(str, Stream(our_subkey(), "bits").bits(32))) == BITS == bits
    words = struct.unpack(">5Q", straight_stream("carrier", 40))  # none of them falls into the rejected tail
    drawn = Stream(our_subkey(), "carrier").below(1_000_000, 5).tolist()
    assert drawn == BELOW_A_MILLION == [word % 1_000_000 for word in words]
    keys = struct.unpack(">8Q", straight_stream("order", 64))
    ranks = sorted(range(8), key=keys.__getitem__)
    assert Stream(our_subkey(), "order").permutations(1, 8)[0].tolist() == PERMUTATION_OF_8 == ranks


def test_every_input_changes_the_subkey():
    secret = schedule.leaf_secret(SEED, LEAF)
    arguments = [secret, BEACON, PUBLIC_KEY, LEAF, METHOD, VERSION, our_precommit()]
    others = [SEED, bytes(32), b"\x01" * 32, 1, "function_coupled", "2", bytes(32)]
    derived = {schedule.derive_subkey(*arguments)}
    for place, other in enumerate(others):
        derived.add(schedule.derive_subkey(*arguments[:place], other, *arguments[place + 1 :]))
    assert len(derived) == 1 + len(others)


@pytest.mark.parametrize(
    "changed",
    [
        (SPEC_OF_0, SHARES),
        (MODEL, SHARES[::-1]),
        (MODEL, SHARES[:1]),
        (MODEL, [*SHARES, Share(SPEC_OF_1, (4,))]),
        (MODEL, [Share(SPEC_OF_0, (0, 1)), Share(SPEC_OF_1, (2,))]),
        (MODEL, [Share(SPEC_OF_0, (0,)), Share(SPEC_OF_1, (1, 2, 3))]),
        (MODEL, [Share(SPEC_OF_0, (1, 0)), Share(SPEC_OF_1, (2, 3))]),
        (MODEL, [Share(SPEC_OF_1, (0, 1)), Share(SPEC_OF_0, (2, 3))]),
    ],
)
def test_model_record_methods_and_their_subkeys_are_all_in_the_precommit(changed):
    assert common_spec(*changed) != common_spec(MODEL, SHARES)


def test_encoding_is_injective():
    assert len({schedule.encode(b"ab", b"c"), schedule.encode(b"a", b"bc"), schedule.encode(b"abc")}) == 3


# --- The tree ---------------------------------------------------------------------------------------------------------


def inclusion(index: int) -> tuple:
    pair = schedule.leaf_secret(SEED, index), schedule.leaf_blind(SEED, index)
    return index, *pair, schedule.inclusion_path(our_levels(), index)


@pytest.mark.parametrize("index", range(COUNT))
def test_every_leaf_is_included(index):
    assert schedule.root_from_path(*inclusion(index)) == our_levels()[-1][0]


def test_wrong_inclusion_proofs_are_refused():
    index, secret, blind, path = inclusion(LEAF)
    wrong = {
        "other index": (1, secret, blind, path),
        "index beyond the tree": (LEAF + COUNT, secret, blind, path),
        "other secret": (index, schedule.leaf_secret(SEED, 3), blind, path),
        "other blind": (index, secret, schedule.leaf_blind(SEED, 3), path),
        "swapped siblings": (index, secret, blind, path[::-1]),
        "short path": (index, secret, blind, path[:1]),
        "long path": (index, secret, blind, [*path, bytes(32)]),
        "empty path": (index, secret, blind, []),
    }
    root = our_levels()[-1][0]
    assert [name for name, proof in wrong.items() if schedule.root_from_path(*proof) == root] == []


def test_a_node_is_no_leaf():
    # Without the prefixes a thief could present an inner node's two halves as the secret and blind of a leaf.
    levels = our_levels()
    left, right = levels[0][2], levels[0][3]
    shorter = schedule.inclusion_path(levels, LEAF)[1:]
    for index in (1, LEAF):
        assert schedule.root_from_path(index, left, right, shorter) != levels[-1][0]
    assert schedule.node_hash(left, right) != hashlib.sha256(left + right).digest()


def test_trees_have_a_power_of_two_of_leaves():
    for count in (0, 3, 12):
        with pytest.raises(ValueError, match="power of two"):
            schedule.merkle_levels([bytes(32)] * count)
    assert schedule.merkle_levels([b"one"]) == [[b"one"]]


# --- Streams ----------------------------------------------------------------------------------------------------------


def test_below_is_uniform():
    drawn = Stream(our_subkey(), "rule").below(9, 90_000)
    counts = np.bincount(drawn, minlength=9)
    assert len(counts) == 9 and stats.chisquare(counts).pvalue > 1e-3


def test_below_rejects_the_uneven_tail():
    # At a bound just above 2^63 half of the words are rejected; without rejection small values would come twice as often.
    bound = 2**63 + 1
    drawn = Stream(our_subkey(), "rule").below(bound - 2**62, 4000)
    assert drawn.min() >= 0 and drawn.max() < bound - 2**62
    assert stats.kstest(drawn / (bound - 2**62), "uniform").pvalue > 1e-3
    assert Stream(our_subkey(), "rule").below(2**32, 3).max() < 2**32


def test_bits_are_fair_and_a_prefix_of_longer_draws():
    bits = Stream(our_subkey(), "bits").bits(40_000)
    assert set(bits.tolist()) == {0, 1} and abs(bits.mean() - 0.5) < 0.01
    assert Stream(our_subkey(), "bits").bits(13).tolist() == bits[:13].tolist()


def test_permutations_are_permutations():
    drawn = Stream(our_subkey(), "order").permutations(300, 10)
    assert (np.sort(drawn, axis=1) == np.arange(10)).all()
    assert stats.chisquare(np.bincount(drawn[:, 0], minlength=10)).pvalue > 1e-3
    assert len({tuple(row) for row in drawn.tolist()}) == 300


def test_streams_continue_and_differ():
    stream, again = Stream(our_subkey(), "bits"), Stream(our_subkey(), "bits")
    assert stream.bytes(8) + stream.bytes(24) == again.bytes(32)
    assert len({Stream(our_subkey(), name).bytes(32) for name in STREAM_NAMES}) == len(STREAM_NAMES)
    with pytest.raises(ValueError, match=r"stream `positions` does not exist; choose one of carrier"):
        Stream(our_subkey(), "positions")
