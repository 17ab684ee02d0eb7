"""
Mutated documents from strangers: whatever arrives, a reader answers or raises `InvalidInput`, soon, without filling the memory and
without writing anywhere.

A few hundred examples per kind by default; `HF_WATERMARK_FUZZ=10000 pytest tests/publishing/test_fuzz.py` for the long run.
"""

import copy
import dataclasses
import json
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from hf_watermark import InvalidInput, Opening, Owner, WatermarkKey, verify
from hf_watermark.claims import Disclosure, check
from hf_watermark.keys import PRECOMMIT_DOMAIN, burnt_subkeys, envelope, pool_digest
from hf_watermark.mapping import METHODS
from hf_watermark.publishing import Precommit, SignedStatement
from hf_watermark.publishing.belonging import opening_problems
from hf_watermark.publishing.signing import check_signature
from hf_watermark.publishing.timestamp import read_token, token_beacon
from hf_watermark.serialization import SafetensorsFolder


EXAMPLES = int(os.environ.get("HF_WATERMARK_FUZZ", "150"))
SECONDS, MEGABYTES = 2.0, 500
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,  # measured below: hypothesis would also count the first import
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What a JSON value can be replaced with: the corners of every limit.
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**53 - 1, 2**53, 2**63, 2**64, 10**400, -(10**30), 0.5, -0.0, 1e308, 1e-320, "", " ", "0", "00" * 32,
    "ff" * 32, "f" * 128, "\x00", "\u202e", "../../x", "/etc/passwd", "a" * 300_000, "😀", [], [[]], [None] * 5000, {}, {"": {}}, "NaN",
    *METHODS, "__class__", [2**40], [-1], ["resnet.3"], {"role": "x"},
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_write_and_little_memory(tmp_path_factory) -> Iterator[None]:
    """Counts every file that is opened for writing outside of the test's folders, and the memory at the end."""
    allowed, written, watching = str(tmp_path_factory.getbasetemp()), [], [True]
    # Checking a signature of files needs a temporary folder; it is counted as one of the test's.
    usual, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))

    def audit(event: str, arguments: tuple) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes) and arguments[2]:
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith((allowed, "/dev/")):
                written.append(path)

    sys.addaudithook(audit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    watching.clear()
    tempfile.tempdir = usual
    assert not [path for path in written if "__pycache__" not in path and ".hypothesis" not in path]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB more"


def survives(read: Callable[[], Any]) -> bool:
    """Whether the reader accepted the input; anything but an answer or `InvalidInput`, or a long wait, fails the test."""
    # Of this process: the machine may be busy with something else.
    begin = time.process_time()
    try:
        read()
        accepted = True
    except InvalidInput:
        accepted = False
    assert time.process_time() - begin < SECONDS
    return accepted


def places(document: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, value in items:
        yield from places(value, (*path, name))


def mutate_json(document: Any, draw: Callable) -> bytes:
    """One to three changes of structure: replaced, removed, doubled or moved values."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(document)) or [()]))
        if not path:
            break
        inner = document
        for part in path[:-1]:
            inner = inner[part]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add", "wrap", "copy"]))
        if kind == "replace":
            inner[path[-1]] = copy.deepcopy(
                draw(st.sampled_from(NASTY) | st.integers() | st.text(max_size=80) | st.floats())
            )
        elif kind == "remove":
            del inner[path[-1]]
        elif kind == "add" and isinstance(inner, dict):
            inner[draw(st.text(max_size=20))] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        elif kind == "wrap":
            inner[path[-1]] = [inner[path[-1]]] * draw(st.integers(1, 3))
        else:
            other = draw(st.sampled_from(list(places(document))))
            value = document
            for part in other:
                value = value[part]
            inner[path[-1]] = json.loads(json.dumps(value))
    return json.dumps(document).encode()


def mutate_bytes(raw: bytes, draw: Callable) -> bytes:
    """One to four changes of bytes: flipped, cut out, doubled, inserted, cut off."""
    for _ in range(draw(st.integers(1, 4))):
        if not raw:
            break
        begin = draw(st.integers(0, len(raw) - 1))
        end = min(len(raw), begin + draw(st.integers(1, 40)))
        kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "truncate"]))
        if kind == "flip":
            raw = raw[:begin] + bytes([raw[begin] ^ (1 << draw(st.integers(0, 7)))]) + raw[begin + 1 :]
        elif kind == "cut":
            raw = raw[:begin] + raw[end:]
        elif kind == "double":
            raw = raw[:end] + raw[begin:end] * draw(st.integers(1, 50)) + raw[end:]
        elif kind == "insert":
            nasty = [
                b"[" * 25_000,
                b'{"a":' * 3000,
                b"\xff\xfe",
                b"\x00",
                b"1" * 5000,
                b"-",
                b"e999",
                b'"\\ud800"',
                b"NaN",
            ]
            raw = raw[:begin] + draw(st.sampled_from(nasty) | st.binary(max_size=30)) + raw[begin:]
        else:
            raw = raw[:begin]
    return raw


def mutate(raw: bytes, draw: Callable) -> bytes:
    try:
        document = json.loads(raw)
    except ValueError:
        return mutate_bytes(raw, draw)
    return mutate_json(document, draw) if draw(st.booleans()) else mutate_bytes(raw, draw)


def fuzz(raw: bytes, read: Callable[[bytes], Any]) -> None:
    """Reads mutants of `raw`; the original must be readable."""
    read(raw)

    @SETTINGS
    @given(st.data())
    def run(data: Any) -> None:
        mutant = mutate(raw, data.draw)
        survives(lambda: read(mutant))

    run()


def test_statements(dated):
    def read(raw: bytes) -> None:
        signed = SignedStatement.parse(raw)
        assert not signed.is_signed or signed.statement == original.statement
        signed.statement.problems()

    raw = (dated.folder / "watermark" / "statement.json").read_bytes()
    original = SignedStatement.parse(raw)
    fuzz(raw, read)


def test_precommits(dated):
    raw = (dated.folder / "watermark" / "precommit.json").read_bytes()
    original = Precommit.parse(raw)

    def read(raw: bytes) -> None:
        precommit = Precommit.parse(raw)
        assert precommit.problems() or precommit == original

    fuzz(raw, read)


def test_openings(dated):
    statement = SignedStatement.parse((dated.folder / "watermark" / "statement.json").read_bytes()).statement
    disclosure = Disclosure.make(dated.shop.key, dated.shop.owner, 1, "court")

    def read(raw: bytes) -> None:
        mutant = Disclosure.parse(raw)
        mutant.problems("court")
        opening_problems(mutant.opening, statement, METHODS)
        verify(dated.folder, mutant.opening)

    fuzz(json.dumps(disclosure.to_dict()).encode(), read)


def hostile_pool(method: str) -> dict[str, torch.Tensor]:
    """Everything that any method looks for, committed."""
    images, classes = torch.rand(240, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 10
    tensors = {"images": images, "labels": torch.arange(240) % classes, "fill": torch.zeros(1)}
    tensors |= {"range": torch.tensor([[0.0], [1.0]]), "reference": torch.zeros(240, classes)}
    return {f"{method}.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("method", list(METHODS))
def test_openings_of_a_hostile_owner(dated, small_configs, method):
    """Everything is committed and signed, by somebody who put anything into config and layout."""
    owner, assignment = Owner.create(), dated.shop.key.assignments[0]
    if method != assignment.method:
        pool = hostile_pool(method)
        layout = {"classes": 10, "source_classes": list(range(10)), "scales": {}, "pool_sha256": pool_digest(pool)}
        assignment = dataclasses.replace(
            assignment, method=method, config=small_configs[method].to_dict(), layout=layout
        )
    else:
        pool = {}
    public = {"config": assignment.config, "layout": assignment.layout, "subkeys": list(assignment.subkeys)}

    def read(raw: bytes) -> None:
        try:
            fields = json.loads(raw)
            hostile = dataclasses.replace(
                assignment,
                config=dict(fields["config"]),
                layout=dict(fields["layout"]),
                subkeys=tuple(map(int, fields["subkeys"])),
            )
            key = dataclasses.replace(dated.shop.key, public_key=owner.public_key, assignments=(hostile,), pool=pool)
            key = dataclasses.replace(key, signature=owner.sign(PRECOMMIT_DOMAIN + key.precommit))
            opening = Opening.of(key, next(iter(hostile.subkeys)))
            opening = Opening.from_dict(opening.to_dict(), opening.pool)
        except Exception:
            return  # nothing that could be committed to
        verify(dated.folder, opening)
        verify(lambda images: torch.full((len(images), 10), 0.1), opening)

    @SETTINGS
    @given(st.data())
    def run(data: Any) -> None:
        mutant = mutate_json(public, data.draw)
        survives(lambda: read(mutant))

    run()


def test_key_files(dated, tmp_path, monkeypatch):
    monkeypatch.setattr(envelope, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})
    for passphrase in (None, "a long enough passphrase"):
        raw = envelope.seal(dated.shop.key._payload(), passphrase)

        def read(raw: bytes, passphrase=passphrase) -> None:
            path = tmp_path / "key.json"
            path.unlink(missing_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(raw)
            assert WatermarkKey.load(tmp_path, passphrase) == dated.shop.key

        fuzz(raw, read)


def test_payloads_of_key_files(dated, tmp_path):
    """The envelope is intact, its content is not."""

    def read(raw: bytes) -> None:
        try:
            sealed = envelope.seal(json.loads(raw), None)
        except Exception:
            return  # no JSON that could be sealed
        path = tmp_path / "key.json"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(sealed)
        WatermarkKey.load(tmp_path).claims()

    fuzz(json.dumps(dated.shop.key._payload()).encode(), read)


def test_burnt_logs(tmp_path):
    def read(raw: bytes) -> None:
        (tmp_path / "burnt.json").write_bytes(raw)
        burnt_subkeys(tmp_path)

    entries = [{"subkey": 1, "nonce": "n", "date": "2026-01-01T00:00:00Z"}]
    fuzz(json.dumps({"schema": "hf-watermark/burnt-log/v2", "entries": entries}).encode(), read)


def test_safetensors_headers(tmp_path):
    raw = save(
        {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}, {"format": "pt"}
    )
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = raw[8 : 8 + length], raw[8 + length :]

    def read(raw: bytes) -> None:
        (tmp_path / "model.safetensors").write_bytes(raw)
        tensors = SafetensorsFolder(tmp_path)
        for name in tensors:
            tensors[name]

    @SETTINGS
    @given(st.data())
    def run(measure: Any) -> None:
        if measure.draw(st.booleans()):
            mutant = mutate(header, measure.draw)
            content = struct.pack("<Q", len(mutant)) + mutant + data
        else:
            content = mutate_bytes(raw, measure.draw)
        survives(lambda: read(content))

    read(raw)
    run()


def test_timestamp_tokens(dated):
    raw = dated.tokens["precommit.0.tsr"]
    message = Precommit.of(dated.shop.key).stamped
    moment = read_token(raw, message, dated.roots).moment

    def read(raw: bytes) -> None:
        token_beacon(raw)
        # A response may differ in what the authority did not sign, never in its time.
        assert read_token(raw, message, dated.roots).moment == moment

    fuzz(raw, read)


def test_model_signatures(tmp_path):
    from hf_watermark.publishing.signing import new_signing_key, public_point, sign_files

    key = new_signing_key()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    files = {"model.safetensors": tmp_path / "model.safetensors"}
    raw = sign_files(files, key)
    fuzz_some = lambda mutant: check_signature(files, mutant, public_point(key.public_key()))  # noqa: E731
    fuzz_some(raw)

    @settings(SETTINGS, max_examples=min(EXAMPLES, 2000))
    @given(st.data())
    def run(data: Any) -> None:
        mutant = mutate(raw, data.draw)
        survives(lambda: fuzz_some(mutant))

    run()


def test_whole_repositories(dated, repository):
    """One public file of a good repository is a mutant: the report says so, nothing is raised."""
    names = ("statement.json", "precommit.json", "subkey0.json", "precommit.0.tsr", "statement.1.tsr")
    originals = {name: (dated.folder / "watermark" / name).read_bytes() for name in names}

    @settings(SETTINGS, max_examples=max(30, EXAMPLES // 10))
    @given(st.sampled_from(names), st.data())
    def run(name: str, data: Any) -> None:
        mutant = mutate(originals[name], data.draw)
        path: Path = repository / "watermark" / name
        path.write_bytes(mutant)
        try:
            begin = time.process_time()
            report = check(repository, dated.roots)
            assert time.process_time() - begin < SECONDS
        finally:
            path.write_bytes(originals[name])
        assert json.dumps(report.to_dict())
        if report.reached == "V3" and not name.endswith(".tsr"):
            assert json.loads(mutant) == json.loads(originals[name])

    run()
