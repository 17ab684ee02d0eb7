"""Repositories that were made to hurt their reader (PROTOCOL.md §1.2 D5 to D10), and some that are merely closed."""

import json
import re
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from shops import write_files

from hf_watermark import InvalidInput, Verdict
from hf_watermark.claims import Disclosure, Outcome, check, judge
from hf_watermark.methods.certified import Certificate
from hf_watermark.methods.certified.certificate import CertifiedRadius
from hf_watermark.publishing import Extras, HubError, publish
from hf_watermark.publishing.parts import CertificateClaim
from hf_watermark.suspects.source import MOST_FILES, Source


@pytest.fixture
def opened(dated):
    return Disclosure.make(dated.shop.key, dated.shop.owner, 1, "n")


class Canary:
    """Unpickling one of these writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def reason_of(opened, suspect, statement):
    """What a judge says of a suspect whose files he refuses: nothing about a mark."""
    result = judge(opened, suspect, statement, "n")
    assert result.verdict is Verdict.INCONCLUSIVE and result.evidence is None or result.evidence.trials == 0
    return result.reason


def test_pickles_are_never_read(dated, opened, hub, tmp_path):
    """D5: by suffix, and by what is in a file that only calls itself safetensors."""
    canary = tmp_path / "canary"
    torch.save({"a": Canary(canary)}, tmp_path / "pytorch_model.bin")
    hub.add_repo("you/pickle", {"pytorch_model.bin": tmp_path / "pytorch_model.bin"})
    assert "is pickled, and reading a pickle can run code" in reason_of(opened, "you/pickle", dated.folder)
    hub.add_repo("you/disguised", {"model.safetensors": tmp_path / "pytorch_model.bin"})
    assert "is not a safetensors file" in reason_of(opened, "you/disguised", dated.folder)
    # Beside good weights it is not touched.
    good = (dated.folder / "model.safetensors").read_bytes()
    hub.add_repo("you/both", {"pytorch_model.bin": tmp_path / "pytorch_model.bin", "model.safetensors": good})
    hub.forget()
    assert judge(opened, "you/both", dated.folder, "n", roots=dated.roots, drawn=True).verdict is Verdict.FOUND
    assert hub.count("GET", "pytorch_model.bin") == 0 and not canary.exists()


def test_archives_are_no_input(dated, opened, tmp_path):
    """D6."""
    (tmp_path / "model.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is a zip archive; expected a model in safetensors" in reason_of(
        opened, tmp_path / "model.zip", dated.folder
    )
    with pytest.raises(InvalidInput, match=f"has more than {MOST_FILES} files"):
        Source.open(tmp_path)._refuse_many(MOST_FILES + 1)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{" + b" " * 9 * 2**20, "announces a header|header limit"),
        (json.dumps({f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(20_001)}).encode(), "more than 60002 opening brackets"),
        (b'{"a": {"dtype": "F32", "shape": [16777216, 16777216], "data_offsets": [0, 4]}}', "limit|do not fit|names or shapes"),
        (b'{"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "names|shapes|architecture"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "appears twice"),
        (b"[" * 100_000, "does not start with"),
    ],
)  # fmt: skip
def test_oversized_and_malformed_weights(dated, opened, hub, header, words):
    """D7: before anything of that size is allocated."""
    hub.add_repo("you/huge", {"model.safetensors": struct.pack("<Q", len(header)) + header + bytes(4)})
    assert re.search(words, reason_of(opened, "you/huge", dated.folder))


def test_too_many_bytes_are_not_fetched(hub):
    hub.add_repo("you/large", {"model.safetensors": bytes(2_000_000)})
    hub.forget()
    with pytest.raises(InvalidInput, match="2000000 bytes of weights, limit 1000000"):
        Source.open("you/large").weights(max_bytes=1_000_000)
    assert hub.bytes_sent < 10_000
    hub.add_repo("you/long", {"watermark/statement.json": b" " * 300_000})
    assert "has 300000 bytes, limit 262144" in check("you/long")["V0"].reasons[0]


def test_code_and_config_of_a_suspect_are_never_used(dated, opened, hub, tmp_path):
    """D8: `auto_map` and modules in the repository."""
    canary = tmp_path / "canary"
    hub.add_repo("you/code", {
        "model.safetensors": dated.folder / "model.safetensors",
        "config.json": json.dumps({"auto_map": {"AutoModelForImageClassification": "modeling.M"}, "model_type": "resnet"}),
        "modeling.py": f"open({str(canary)!r}, 'w')",
    })  # fmt: skip
    hub.forget()
    assert judge(opened, "you/code", dated.folder, "n", roots=dated.roots, drawn=True).found
    assert not canary.exists() and hub.count("GET", "modeling.py") == 0
    assert not [name for name in sys.modules if "transformers_modules" in name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-42, 0.0])
def test_strange_values(dated, opened, tmp_path, value):
    """D9: no mark, and where nothing can be read, not the word that there is none."""
    tensors = {
        name: torch.full_like(t, value) if t.is_floating_point() else t
        for name, t in load_file(dated.folder / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    result = judge(opened, tmp_path, dated.folder, "n", roots=dated.roots, drawn=True)
    assert result.verdict is (Verdict.NOT_FOUND if value == 1e-42 else Verdict.INCONCLUSIVE)
    assert result.evidence.log2_p > -20
    if not abs(value) < 1:
        assert "NaN or infinite values" in result.reason


def test_look_alike_names(dated, repository):
    """D10: a name that looks like another one is no name of a repository, and no name in a statement."""
    for name in (
        "mе/model",
        "me/mod\u202eel",
        "me/<b>",
        "me/..",
        "/etc/passwd",
        "me/model@\n",
    ):  # the first has a Cyrillic e
        with pytest.raises(InvalidInput):
            Source.open(name)
    document = json.loads((repository / "watermark" / "statement.json").read_text())
    document["statement"]["model_id"] = "mе/model"
    write_files(repository, {"watermark/statement.json": json.dumps(document).encode()})
    assert check(repository)["V0"].outcome is Outcome.FAILED


def test_private_gated_missing(dated, opened, hub):
    weights = {"model.safetensors": dated.folder / "model.safetensors"}
    hub.add_repo("you/private", weights, private=True)
    hub.add_repo("you/gated", weights, gated=True)
    for name, words in {
        "you/private": "does not exist, or is private",
        "you/gated": "is gated; ask for access",
        "you/nothing": "does not exist, or is private",
        "you/gated@v9": "has no such revision",
    }.items():
        with pytest.raises(HubError, match=words):
            judge(opened, name, dated.folder, "n")
    hub.repos["models", "you/gated"].granted.add("me")
    assert judge(opened, "you/gated", dated.folder, "n", roots=dated.roots, drawn=True).found


def test_a_real_certificate_goes_into_the_statement(hub, shop):
    rows = {
        0: [
            CertifiedRadius(0.5, 0.05, 95, 0.95, -120.5, True, 1000),
            CertifiedRadius(1.0, 0.1, None, None, 0.0, False, 1000),
        ],
        1: [
            CertifiedRadius(0.5, 0.05, 90, 0.9, -110.5, True, 1000),
            CertifiedRadius(1.0, 0.1, 80, 0.8, -90.0, True, 1000),
        ],
    }
    certificate = Certificate(0.1, "l2", "parameters", 100, 1000, 30, 0.99, 0.2, 40, rows)
    claim = CertificateClaim.of(certificate.to_dict())
    assert [(point.radius, point.accuracy_bp, point.certified) for point in claim.curve] == [
        ("0.5", 9000, True),
        ("1.0", 0, False),
    ]
    published = publish(shop.folder, "me/model", shop.key, shop.owner, shop.read, Extras(certificates=[certificate]))
    assert published.statement.statement.certificates == [claim] and claim.radius == "0.5"
    assert "90.00 %" in hub.files("me/model")["README.md"].decode()


def test_shards_and_index(dated, opened, hub):
    tensors = load_file(dated.folder / "model.safetensors")
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]
    index = {"weight_map": {name: f"model-{i}.safetensors" for i, part in enumerate(halves) for name in part}}
    files = {f"model-{i}.safetensors": save(part) for i, part in enumerate(halves)}
    hub.add_repo("you/shards", files | {"model.safetensors.index.json": json.dumps(index)})
    assert judge(opened, "you/shards", dated.folder, "n", roots=dated.roots, drawn=True).found
    index["weight_map"][names[0]] = "../../../etc/passwd.safetensors"
    hub.add_repo("you/shards", {"model.safetensors.index.json": json.dumps(index)})
    assert "is not a plain .safetensors file name" in reason_of(opened, "you/shards", dated.folder)
