"""A secret in shares of which any k restore it, and fewer do not (SLIP-39)."""

import stat
import sys
from itertools import combinations

import pytest
from commands import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic import Share, generate_mnemonics
from test_watermark_key import assert_same, make_key

from hf_watermark import InvalidInput, Owner, WatermarkKey
from hf_watermark.keys import envelope, key_inside
from hf_watermark.keys.shares import BACKUP, OWNER, join_owner, join_shares, share_text, split_owner, split_secret
from hf_watermark.publishing.scan import Scanner


PASSPHRASE = "correct horse battery"
SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(envelope, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})


def test_every_subset_restores_the_owner_and_no_smaller_one_does():
    owner = Owner.create()
    shares = split_owner(owner, 5, 3)
    for size in range(6):
        for chosen in combinations(shares, size):
            if size >= 3:
                assert join_owner(chosen[::-1]).public_key == owner.public_key
            else:
                with pytest.raises(InvalidInput, match="no share was given|different shares were given, 3 are needed"):
                    join_owner(chosen)


def test_a_share_does_not_hold_the_secret():
    shares = [Share.from_mnemonic(words) for words in split_secret(SECRET, OWNER, 3, 2)]
    assert {share.member_threshold for share in shares} == {2}
    assert not any(SECRET[:8] in share.value for share in shares)
    again = [Share.from_mnemonic(words) for words in split_secret(SECRET, OWNER, 3, 2)]
    assert all(one.value != other.value for one, other in zip(shares, again, strict=True)), "shares are drawn anew"


@pytest.mark.parametrize(("shares", "threshold"), [(5, 1), (1, 1), (2, 3), (17, 2), (0, 0), (3, -1)])
def test_numbers_that_make_no_sense(shares, threshold):
    with pytest.raises(InvalidInput, match=f"{threshold} of {shares} shares: give at least 2"):
        split_secret(SECRET, OWNER, shares, threshold)


def test_one_share_twice_is_one_share():
    first, second, _ = split_secret(SECRET, OWNER, 3, 2)
    with pytest.raises(InvalidInput, match="1 different shares were given, 2 are needed"):
        join_shares([first, first], OWNER)
    assert join_shares([first, first, second], OWNER) == SECRET


@given(st.integers(0, 38), st.integers(0, 1023))
@settings(max_examples=60, deadline=None)
def test_a_mistyped_word_is_noticed(place, word):
    from shamir_mnemonic.wordlist import WORDLIST

    first, second = split_secret(SECRET, OWNER, 2, 2)
    words = first.split()
    place %= len(words)
    if words[place] == WORDLIST[word]:
        return
    words[place] = WORDLIST[word]
    with pytest.raises(InvalidInput, match="share 1: a word is missing, mistyped"):
        join_shares([" ".join(words), second], OWNER)


@pytest.mark.parametrize("words", ["", "academic", "no such words", "é" * 40, "academic " * 500])
def test_what_is_no_share(words):
    with pytest.raises(InvalidInput, match="share 2: ") as caught:
        join_shares([split_secret(SECRET, OWNER, 2, 2)[0], words], OWNER)
    assert "academic" not in str(caught.value) and "such" not in str(caught.value), "no word is quoted"


def made_up(share: str, **changes) -> str:
    """A share with other contents and a checksum that fits."""
    from dataclasses import replace

    return replace(Share.from_mnemonic(share), **changes).mnemonic()


def test_shares_of_two_secrets_do_not_mix():
    ours, theirs = split_secret(SECRET, OWNER, 3, 2), split_secret(bytes(32), OWNER, 3, 2)
    with pytest.raises(InvalidInput, match="share 2 belongs to another secret"):
        join_shares([ours[0], theirs[1]], OWNER)
    # Also where whoever mixes them gives both splits the same name.
    identifier = Share.from_mnemonic(ours[0]).identifier
    with pytest.raises(InvalidInput, match="do not belong together"):
        join_shares([ours[0], made_up(theirs[1], identifier=identifier)], OWNER)
    with pytest.raises(InvalidInput, match="do not belong together"):
        join_shares([*ours[:2], made_up(theirs[2], identifier=identifier)], OWNER)


def test_shares_that_were_changed():
    shares = split_secret(SECRET, OWNER, 3, 2)
    for changes in ({"value": bytes(36)}, {"index": 2}):
        for others in (shares[1:2], shares[1:]):
            with pytest.raises(InvalidInput, match="do not belong together"):
                join_shares([made_up(shares[0], **changes), *others], OWNER)
    with pytest.raises(InvalidInput, match="share 1: was made by another program"):
        # It would take hours of hashing.
        join_shares([made_up(share, iteration_exponent=15) for share in shares], OWNER)
    with pytest.raises(InvalidInput, match="are needed"):
        join_shares([made_up(share, member_threshold=1) for share in shares[:1]], OWNER)


def test_shares_of_something_else_are_no_owner():
    with pytest.raises(InvalidInput, match="do not restore an owner, but something else"):
        join_owner(split_secret(SECRET, BACKUP, 2, 2))
    [foreign] = generate_mnemonics(1, [(2, 2)], SECRET, iteration_exponent=0)
    with pytest.raises(InvalidInput, match="do not restore an owner"):
        join_owner(foreign)


def test_a_share_is_a_secret_file(tmp_path):
    text = share_text(split_secret(SECRET, OWNER, 2, 2)[0], 1, 2, 2, "the owner 1234")
    (tmp_path / "notes.txt").write_text(text)
    assert key_inside(tmp_path) == tmp_path / "notes.txt"
    assert Scanner({}).find(text.encode()) == "key file"


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "shamir_mnemonic", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-watermark\[backup\]'"):
        split_secret(SECRET, OWNER, 2, 2)


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "words"
    file.write_text(PASSPHRASE)
    file.chmod(0o600)
    return file


def test_the_owner_commands(tmp_path, words):
    owner = Owner.create()
    owner.save(tmp_path / "owner.json", PASSPHRASE)
    opened = ("--path", tmp_path / "owner.json", "--passphrase-file", words)
    split = ("owner", "backup", *opened, "--shares", 3, "--threshold", 2)
    assert "where shall the shares go?" in refused(*split)
    made = run(*split, "--share-folder", tmp_path / "shares")
    files = sorted((tmp_path / "shares").iterdir())
    assert [path.name for path in files] == ["share-1-of-3.txt", "share-2-of-3.txt", "share-3-of-3.txt"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "shares").stat().st_mode) == 0o700
    shared = files[0].read_text().splitlines()
    assert owner.fingerprint in shared[0] and shared[1] not in made.output
    assert "exists and is left as it is" in refused(*split, "--share-folder", tmp_path / "shares")

    back = ("--path", tmp_path / "again.json", "--passphrase-file", words)
    assert "2 are needed" in refused("owner", "restore", files[0], *back)
    restored = run("owner", "restore", files[2], files[0], *back)
    assert owner.fingerprint in restored.stdout
    assert Owner.load(tmp_path / "again.json", PASSPHRASE).public_key == owner.public_key
    assert "is left as it is" in refused("owner", "restore", *files, *back)
    files[0].chmod(0o644)
    assert "others have access" in refused("owner", "restore", *files, "--path", tmp_path / "third.json")


def test_printed_shares_are_stored_nowhere(tmp_path, words):
    owner = Owner.create()
    owner.save(tmp_path / "owner.json", PASSPHRASE)
    before = sorted(tmp_path.rglob("*"))
    printed = run(
        "owner", "backup", "--path", tmp_path / "owner.json", "--passphrase-file", words, "--shares", 2, "--threshold", 2, "--print",
    ).stdout  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before
    shares = [line for line in printed.splitlines() if line and not line.startswith("#")]
    assert join_owner([line.upper() for line in shares]).public_key == owner.public_key


def test_the_key_commands(owner, tmp_path, words):
    folder = make_key(owner).save(tmp_path / "keys", PASSPHRASE)
    backup, shares = tmp_path / "backup.json", tmp_path / "shares"
    export = ("key", "export", "--key", folder, "--passphrase-file", words, "--output", backup, "--shares", 3)
    assert "leave out --backup-passphrase-file" in refused(*export, "--print", "--backup-passphrase-file", words)
    run(*export, "--share-folder", shares)
    files = [str(path) for path in sorted(shares.iterdir())]
    bring = ("key", "import", backup, "--key", tmp_path / "again")
    one, two = (("--share", path) for path in files[:2])
    assert "2 are needed" in refused(*bring, *one, "--passphrase-file", words)
    assert "nobody can type a passphrase here" in refused(*bring, *one, *two)
    run(*bring, *one, *two, "--passphrase-file", words)
    assert_same(WatermarkKey.load(tmp_path / "again", PASSPHRASE), WatermarkKey.load(folder, PASSPHRASE))


def test_shares_never_lie_in_a_model(tmp_path, words):
    Owner.create().save(tmp_path / "owner.json", PASSPHRASE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "lies inside a model folder" in refused(
        "owner", "backup", "--path", tmp_path / "owner.json", "--passphrase-file", words,
        "--shares", 2, "--threshold", 2, "--share-folder", tmp_path / "model" / "shares",
    )  # fmt: skip
