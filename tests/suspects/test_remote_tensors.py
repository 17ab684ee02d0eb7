"""Safetensors of a Hub repo, read by ranges at one commit."""

import json

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save
from server import Blob

from hf_watermark import InvalidInput, Suspect
from hf_watermark.evidence import Access
from hf_watermark.publishing import HubError
from hf_watermark.serialization import UnreadableFormat
from hf_watermark.suspects.remote import Part, RangesIgnored, RemoteSafetensors


TENSORS = {
    "big": torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0)),
    "bias": torch.arange(5),
    "conv": torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "step": torch.tensor(3),
}
WEIGHTS = save(TENSORS)


def shards(number: int = 2) -> dict[str, bytes]:
    names = sorted(TENSORS)
    files = {f"model-{i}.safetensors": save({n: TENSORS[n] for n in names[i::number]}) for i in range(number)}
    weight_map = {name: f"model-{place % number}.safetensors" for place, name in enumerate(names)}
    index = json.dumps({"metadata": {"total_size": 1.0}, "weight_map": weight_map})
    return files | {"model.safetensors.index.json": index.encode()}


@pytest.mark.parametrize("cdn", [False, True])
def test_single_tensors_and_rows(hub, cdn):
    hub.cdn = cdn
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    remote = RemoteSafetensors("you/model")
    assert len(hub.requests) == 2 + cdn and len(remote) == 4 and "bias" in remote
    assert remote.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert remote.dtypes["conv"] == "BF16" and remote.size == len(WEIGHTS)
    for name, tensor in TENSORS.items():
        assert torch.equal(remote[name], tensor)
    part = Part("big", 5, 9)
    hub.forget()
    assert torch.equal(remote.fetch([part])[part], TENSORS["big"][5:9])
    # The address that the Hub redirected to is asked directly, and is not told who asks.
    assert hub.bytes_sent == 4 * 8 * 4 and len(hub.requests) == 1 and hub.requests[0].authenticated is not cdn


def test_neighbours_come_in_one_request(hub):
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    remote = RemoteSafetensors("you/model")
    hub.forget()
    parts = [Part("big", 0, 4), Part("big", 90_000, 90_001), Part("big", 90_100, 100_000), Part("conv", 0, 64)]
    read = remote.fetch(reversed(parts))
    assert len(hub.requests) == 2 and all(torch.equal(read[p], TENSORS[p.tensor][p.start : p.stop]) for p in parts)
    with pytest.raises(IndexError, match="rows 0 to 65 of conv, which has 64"):
        remote.fetch([Part("conv", 0, 65)])


def test_an_expired_address_is_asked_for_again(hub):
    hub.cdn = True
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    remote = RemoteSafetensors("you/model")
    remote._places["model.safetensors"] = f"{hub.url}/expired"
    assert torch.equal(remote["bias"], TENSORS["bias"])


def test_shards(hub):
    hub.add_repo("you/model", shards())
    remote = RemoteSafetensors("you/model")
    assert len(hub.requests) == 4 and set(remote) == set(TENSORS)
    assert all(torch.equal(remote[name], tensor) for name, tensor in TENSORS.items())


def test_long_headers_cost_one_request_more(hub):
    many = {f"a_rather_long_name_of_a_tensor.{number}": torch.zeros(1) for number in range(2000)}
    hub.add_repo("you/model", {"model.safetensors": save(many)})
    assert len(RemoteSafetensors("you/model")) == 2000 and len(hub.requests) == 3


def test_the_commit_is_pinned(hub):
    first = hub.add_repo("you/model", {"model.safetensors": WEIGHTS}).head.oid
    remote = RemoteSafetensors("you/model")
    hub.add_repo("you/model", {"model.safetensors": save({"other": torch.zeros(3)})})
    assert remote.revision == first and torch.equal(remote["bias"], TENSORS["bias"])
    assert set(RemoteSafetensors("you/model")) == {"other"}
    assert set(RemoteSafetensors(f"you/model@{first}")) == set(TENSORS)
    assert Suspect.open(f"you/model@{first}").name == f"you/model@{first[:12]}"


def test_a_dropped_connection_is_tried_again(hub):
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    remote = RemoteSafetensors("you/model")
    hub.forget()
    hub.drop_at(1)
    assert torch.equal(remote["bias"], TENSORS["bias"])


def test_a_folder_of_this_name_goes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "you" / "model").mkdir(parents=True)
    (tmp_path / "you" / "model" / "model.safetensors").write_bytes(WEIGHTS)
    assert Suspect.open("you/model").access == {Access.WEIGHTS} and not hub.requests


def test_private_and_gated_repos(hub, monkeypatch):
    hub.add_repo("you/private", {"model.safetensors": WEIGHTS}, private=True)
    hub.add_repo("you/gated", {"model.safetensors": WEIGHTS}, gated=True)
    for token in (None, False):
        with pytest.raises(InvalidInput, match="you/private: does not exist, or is private; .*`hf auth login`"):
            Suspect.open("you/private", token=token)
        with pytest.raises(InvalidInput, match="you/gated.*: is gated; ask for access"):
            Suspect.open("you/gated", token=token)
    for name in ("you/private", "you/gated"):
        hub.repos["models", name].granted.add("me")
        assert torch.equal(Suspect.open(name).weights["bias"], TENSORS["bias"])
        with pytest.raises(InvalidInput):
            Suspect.open(name, token=False)


def test_offline_mode_reads_the_cache_only(hub, monkeypatch):
    from huggingface_hub import constants

    commit = hub.add_repo("you/model", {"model.safetensors": WEIGHTS}).head.oid
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="not in the cache and offline mode is on; run `hf download you/model`"):
        Suspect.open("you/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot_download("you/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    for name in ("you/model", f"you/model@{commit}"):
        assert torch.equal(Suspect.open(name).weights["conv"], TENSORS["conv"])
    assert not hub.requests


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"hello"}, "holds only README.md; expected a model in safetensors"),
        ({"pytorch_model.bin": b"x"}, "pytorch_model.bin is pickled, and reading a pickle can run code"),
        ({"sub/model.safetensors": WEIGHTS}, "holds no model itself, but its folder sub does"),
        ({"model.safetensors": b""}, "model.safetensors is missing or empty"),
        ({"model.safetensors": b"1234567"}, "is not a safetensors file"),
        ({"model.safetensors": (2**40).to_bytes(8, "little") + WEIGHTS[8:]}, "is not a safetensors file"),
        ({"model.safetensors": WEIGHTS[:-1]}, "it is truncated"),
        ({"model.safetensors": WEIGHTS.replace(b'"BF16"', b'"F\\n16"')}, "is no name of a type"),
        ({"model.safetensors.index.json": b"{}"}, "weight_map of model.safetensors.index.json must map"),
        ({"model.safetensors.index.json": b"[" * 300_000}, "model.safetensors.index.json: JSON has more than"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../a.safetensors"}}'},
            "'../a.safetensors' in model.safetensors.index.json is not a plain",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "a.safetensors"}}'},
            r"a part of the model is missing \(a.safetensors\)",
        ),
    ],
)
def test_what_is_no_model_is_refused_and_says_why(hub, files, message):
    hub.add_repo("you/model", files)
    with pytest.raises(InvalidInput, match=message):
        RemoteSafetensors("you/model")


def test_limits_come_before_reading(hub):
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    with pytest.raises(InvalidInput, match=f"its weights have {len(WEIGHTS)} bytes, limit 1000"):
        RemoteSafetensors("you/model", max_bytes=1000)
    assert len(hub.requests) == 1
    hub.add_repo("you/model", {"model.safetensors.index.json": b" " * (8 * 2**20 + 1)})
    del hub.repos["models", "you/model"].head.files["model.safetensors"]
    with pytest.raises(InvalidInput, match="index.json has 8388609 bytes, limit 8388608"):
        RemoteSafetensors("you/model")


@pytest.mark.parametrize("name", ["you/nothing", "you/model@nothing", "you/model@" + "0" * 40])
def test_what_does_not_exist(hub, name):
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    with pytest.raises(InvalidInput, match="does not exist|has no such revision"):
        RemoteSafetensors(name)


@pytest.mark.parametrize("name", ["model", "you/../model", "a/b/c", "https://you/model", "-/x", "you/mo del"])
def test_names_that_are_no_repo(hub, name):
    with pytest.raises(InvalidInput):
        RemoteSafetensors(name)
    with pytest.raises(InvalidInput):
        Suspect.open(name)
    assert not hub.requests


def test_not_finite_values_are_refused_when_read(hub):
    hub.add_repo(
        "you/model", {"model.safetensors": save({"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)})}
    )
    remote = RemoteSafetensors("you/model")
    assert remote["b"].sum() == 2
    with pytest.raises(InvalidInput, match="tensor a has NaN or infinite values"):
        remote["a"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": WEIGHTS.replace(b'"BF16"', b'"BF17"')}, "tensor conv is stored as BF17, which cannot be read"),
        ({"a.safetensors": WEIGHTS, "b.safetensors": save({"conv": TENSORS["conv"]})}, "is in a.safetensors and b.safetensors"),
    ],
)  # fmt: skip
def test_a_tensor_that_cannot_be_read_hides_no_other(hub, files, message):
    hub.add_repo("you/model", files)
    remote = RemoteSafetensors("you/model")
    assert torch.equal(remote["big"], TENSORS["big"])
    with pytest.raises(UnreadableFormat, match=message):
        remote["conv"]


def test_empty_and_complex_tensors_of_a_repository(hub):
    tensors = {"none": torch.zeros(0), "a/b:c": torch.zeros(3, 0), "freqs": torch.tensor([1j, 2.0])}
    hub.add_repo("you/model", {"model.safetensors": save(tensors)})
    remote = RemoteSafetensors("you/model")
    assert all(torch.equal(remote[name], tensor) for name, tensor in tensors.items())


def test_a_server_that_ignores_ranges(hub):
    hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    hub.ranges = False
    with pytest.raises(RangesIgnored, match="the server ignored the range request"):
        RemoteSafetensors("you/model")
    # A suspect is then downloaded as a whole, by the Hub's own client.
    assert torch.equal(Suspect.open("you/model").weights["conv"], TENSORS["conv"])


def test_a_connection_that_breaks_in_the_middle(hub):
    class Broken(Blob):
        def read(self, begin: int, end: int) -> bytes:
            if begin > 10_000:
                raise ConnectionError("the cable")
            return super().read(begin, end)

    repo = hub.add_repo("you/model", {"model.safetensors": WEIGHTS})
    remote = RemoteSafetensors("you/model")
    broken = Broken(WEIGHTS)
    broken.__dict__ |= {"sha256": "0" * 64, "oid": "0" * 40}  # these are read from the start
    repo.head.files["model.safetensors"] = broken
    with pytest.raises(HubError, match="broke"):
        remote.fetch([Part("big", 90_000, 90_100)])


def test_a_failing_or_absent_hub_is_no_verdict(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the connection.* broke"):
        RemoteSafetensors("you/model")
