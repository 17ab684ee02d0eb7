"""D3: what a careless or colluding judge can pass on is one sub-key, and nothing from which another follows."""

import json

import pytest
from safetensors.torch import load_file, save

from hf_watermark import Opening, WatermarkKey, verify
from hf_watermark.claims import Disclosure, judge
from hf_watermark.keys import schedule


INDEX, NONCE = 1, "court-4711"


@pytest.fixture
def disclosed(dated):
    return Disclosure.make(dated.shop.key, dated.shop.owner, INDEX, NONCE).to_dict()


def strings(value) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def secrets_but(key, index: int) -> dict[str, bytes]:
    """Everything that stays secret when one sub-key is opened."""
    hidden = {"seed": key.seed}
    for other in set(range(key.count)) - {index}:
        hidden[f"leaf {other}"], hidden[f"blind {other}"] = key.leaf(other)
    for claim in key.claims():
        for subkey in claim.subkeys:
            if subkey.index != index:
                hidden[f"derived {subkey.index}"] = subkey.secret
                hidden |= {
                    f"{name} {subkey.index}": subkey.stream(name).words(8).tobytes() for name in schedule.STREAM_NAMES
                }
    return hidden


def test_every_value_of_an_opening_is_its_own_or_public(dated, disclosed):
    """By counting: each long string is this sub-key's, a hash of what stays hidden, or in the public statement."""
    key = dated.shop.key
    secret, blind = key.leaf(INDEX)
    own = {secret.hex(), blind.hex(), key.assignments[0].salt.hex(), disclosed["consent"]["signature"]}
    own.add(schedule.digest(b"hfwm/v2/opening", derived(key, INDEX), key.beacon_source.encode()).hex())
    hashes = {node.hex() for node in key.inclusion_path(INDEX)}
    public = (dated.folder / "watermark" / "statement.json").read_text() + key.signature.hex()
    public += "".join(load_file(dated.folder / "model.safetensors"))  # names of tensors
    public += key.context.start  # a digest of a whole model, from which nothing follows
    # How the rows of the carriers were spread before there was a mark.
    public += "".join(item["witness"] for item in key.assignments[0].layout["carriers"])
    for text in strings(disclosed):
        assert len(text) < 32 or text in own | hashes or text in public, text[:20]


def derived(key: WatermarkKey, index: int, secret: bytes | None = None) -> bytes:
    """The sub-key of a leaf, or of another secret in its place."""
    [assignment] = key.assignments
    secret = key.leaf(index)[0] if secret is None else secret
    return schedule.derive_subkey(
        secret, key.beacon, key.public_key, index, assignment.method, assignment.version, key.precommit
    )


def test_an_opening_can_be_made_without_the_seed(dated, disclosed):
    """By simulation: this sub-key's two secrets and public hashes give the same document, so it says nothing about the others."""
    key = dated.shop.key
    secret, blind = key.leaf(INDEX)
    leaves = [schedule.leaf_hash(index, *key.leaf(index)) for index in range(key.count)]
    del leaves[INDEX]  # from here on, only hashes of the others are used
    leaves.insert(INDEX, schedule.leaf_hash(INDEX, secret, blind))
    path = schedule.inclusion_path(schedule.merkle_levels(leaves), INDEX)
    check_value = schedule.digest(b"hfwm/v2/opening", derived(key, INDEX), key.beacon_source.encode())
    made = Opening(
        INDEX, secret, blind, tuple(path), key.assignments[0], (key.assignments[0].share,), key.context, key.public_key,
        key.count, key.beacon, key.beacon_source, key.precommit, key.signature, check_value,
    )  # fmt: skip
    assert made.to_dict() == {name: value for name, value in disclosed.items() if name != "consent"}
    # Other secrets behind the same hashes would be opened to the same words; the hashes hide them behind 32 random bytes each.
    assert all(len(blind) == 32 for _, blind in map(key.leaf, range(key.count)))


def test_nothing_that_stays_secret_is_in_what_a_judge_holds_or_writes(dated, disclosed):
    key, hidden = dated.shop.key, secrets_but(dated.shop.key, INDEX)
    held = json.dumps(disclosed).encode() + save(Opening.of(key, INDEX).pool)
    held += b"".join(path.read_bytes() for path in dated.folder.rglob("*") if path.is_file())
    result = judge(Disclosure.parse(json.dumps(disclosed).encode()), dated.folder, dated.folder, NONCE, dated.roots)
    assert result.evidence is not None
    transcript = json.dumps(result.transcript).encode()
    public = {"leaf 0", "blind 0", *(name for name in hidden if name.endswith(" 0"))}  # opened on purpose
    for name, secret in hidden.items():
        assert secret not in transcript and secret.hex().encode() not in transcript, name
        if name not in public:
            assert secret not in held and secret.hex().encode() not in held, name
    # A published transcript does not even burn the sub-key that it is about.
    for secret in key.leaf(INDEX):
        assert secret.hex().encode() not in transcript


def test_what_is_disclosed_does_not_read_the_other_subkeys(dated, disclosed):
    """A judge who claims with another index, or derives with the secret he has, gets bits that are not in the model."""
    key, opened = dated.shop.key, Opening.from_dict({n: v for n, v in disclosed.items() if n != "consent"})
    assert verify(dated.folder, opened).found
    [claim] = key.claims()
    [known] = opened.claims()[0].subkeys
    for subkey in claim.subkeys:
        if subkey.index == INDEX:
            continue
        guess = derived(key, subkey.index, opened.secret)
        agreeing = sum((a == b) for a, b in zip(bits(guess), bits(subkey.secret), strict=True))
        assert guess != subkey.secret and 380 < agreeing < 644  # of 1,024; outside once in 10^15
        assert 380 < sum(a == b for a, b in zip(bits(known.secret), bits(subkey.secret), strict=True)) < 644


def bits(secret: bytes) -> list[int]:
    return schedule.Stream(secret, "bits").bits(1024).tolist()


def test_two_judges_come_to_the_same_numbers(dated, disclosed):
    """What a judge says can be checked by another one: apart from decoy keys and the clock, the transcript is a function of its inputs."""

    def ruled():
        disclosure = Disclosure.parse(json.dumps(disclosed).encode())
        transcript = judge(disclosure, dated.folder, dated.folder, NONCE, dated.roots, drawn=True).transcript
        evidence = {name: transcript["evidence"][name] for name in ("matches", "trials", "log2_p", "verdict", "looks")}
        kept = {name: transcript[name] for name in ("inputs", "steps", "ledger", "verdict", "reason")}
        return evidence, kept, transcript["statement"]["levels"]

    assert ruled() == ruled()
