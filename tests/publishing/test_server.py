"""The loopback Hub behaves as the real client expects."""

import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    get_safetensors_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save
from server import HubServer, environment
from tiny import tiny_resnet
from transformers import AutoModelForImageClassification


WEIGHTS = save({"a": torch.arange(60_000.0), "b": torch.ones(3)})


def commit(hub: HubServer, **files: bytes):
    operations = [CommitOperationAdd(name.replace("__", "."), content) for name, content in files.items()]
    return HfApi().create_commit("me/model", operations, commit_message="files")


def test_create_commit_and_download(hub):
    api = HfApi()
    assert api.create_repo("me/model", exist_ok=True).repo_id == "me/model"
    api.create_repo("me/model", exist_ok=True)
    info = commit(hub, model__safetensors=WEIGHTS, notes__txt=b"hello")
    assert hub.files("me/model") == {"model.safetensors": WEIGHTS, "notes.txt": b"hello"}
    assert hub.count("PUT", "/lfs/") == 1 and hub.repos["models", "me/model"].head.oid == info.oid
    with open(hf_hub_download("me/model", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    assert sorted(api.list_repo_files("me/model")) == ["model.safetensors", "notes.txt"]
    [latest, first] = api.list_repo_commits("me/model")
    assert latest.commit_id == info.oid and latest.title == "files" and first.title == "initial commit"
    siblings = {item.rfilename: item for item in api.model_info("me/model", files_metadata=True).siblings}
    assert (
        siblings["model.safetensors"].lfs.sha256 == api.get_paths_info("me/model", ["model.safetensors"])[0].lfs.sha256
    )
    assert api.whoami()["name"] == "me"


def test_unchanged_files_make_no_commit(hub):
    HfApi().create_repo("me/model")
    first = commit(hub, notes__txt=b"hello", model__safetensors=WEIGHTS)
    assert commit(hub, notes__txt=b"hello", model__safetensors=WEIGHTS).oid == first.oid
    assert len(hub.repos["models", "me/model"].commits) == 2


def test_files_are_deleted_in_the_same_commit(hub):
    HfApi().create_repo("me/model")
    commit(hub, old__bin=b"x", notes__txt=b"hello")
    operations = [CommitOperationDelete("old.bin"), CommitOperationAdd("new.txt", b"new")]
    HfApi().create_commit("me/model", operations, commit_message="swap")
    assert set(hub.files("me/model")) == {"notes.txt", "new.txt"}
    assert set(hub.files("me/model", hub.repos["models", "me/model"].commits[1].oid)) == {"notes.txt", "old.bin"}


@pytest.mark.parametrize("cdn", [False, True])
def test_ranges(hub, cdn, tmp_path):
    hub.cdn = cdn
    (tmp_path / "weights").write_bytes(WEIGHTS)
    hub.add_repo("you/model", {"model.safetensors": tmp_path / "weights"})
    metadata = get_safetensors_metadata("you/model")
    assert metadata.files_metadata["model.safetensors"].tensors["b"].shape == [3]
    hub.forget()
    response = get_session().get(hf_hub_url("you/model", "model.safetensors"), headers={"Range": "bytes=8-15"})
    assert response.status_code == 206 and response.content == WEIGHTS[8:16]
    assert response.headers["Content-Range"] == f"bytes 8-15/{len(WEIGHTS)}"
    assert hub.bytes_sent < 200 and hub.requests[-1].range == "bytes=8-15" and len(hub.requests) == 1 + cdn
    with HfFileSystem().open("you/model/model.safetensors", "rb", block_size=2**10) as file:
        file.seek(100_000)
        assert file.read(4) == WEIGHTS[100_000:100_004]
    hub.ranges = False
    response = get_session().get(hf_hub_url("you/model", "model.safetensors"), headers={"Range": "bytes=8-15"})
    assert response.status_code == 200 and response.content == WEIGHTS


def test_private_and_gated(hub, tmp_path):
    hub.add_repo("you/private", {"a.txt": "a"}, private=True)
    hub.add_repo("you/gated", {"a.txt": "a"}, gated=True)
    for token in (False, None):
        with pytest.raises(RepositoryNotFoundError) as caught:
            HfApi().model_info("you/private", token=token)
        assert not isinstance(caught.value, GatedRepoError)
        with pytest.raises(GatedRepoError):
            hf_hub_download("you/gated", "a.txt", token=token, local_dir=tmp_path)
        assert HfApi().model_info("you/gated", token=token).gated == "manual"
    hub.repos["models", "you/gated"].granted.add("me")
    hub.repos["models", "you/private"].granted.add("me")
    for name in ("you/gated", "you/private"):
        assert hf_hub_download(name, "a.txt", local_dir=tmp_path)


def test_errors(hub):
    hub.add_repo("you/model", {"a.txt": "a"})
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("you/nothing")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("you/model", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("you/model", "b.txt")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_commit("you/model", [CommitOperationAdd("b.txt", b"b")], commit_message="b")
    hub.verdict_on_yaml = ["license is unknown"]
    card = CommitOperationAdd("README.md", b"---\nlicense: x\n---\ntext")
    with pytest.raises(ValueError, match="license is unknown"):
        HfApi().create_commit("you/model", [card], commit_message="the card is looked at first")


def test_the_order_of_two_publishers_shows(hub):
    HfApi().create_repo("me/model")
    parent = HfApi().model_info("me/model").sha
    operation = CommitOperationAdd("a.txt", b"a")
    hub.before_commit = lambda: hub.add_repo("me/model", {"a.txt": "theirs"})
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().create_commit("me/model", [operation], commit_message="a", parent_commit=parent)
    assert hub.files("me/model") == {"a.txt": b"theirs"}
    hub.conflict()
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(hub, b__txt=b"b")
    commit(hub, b__txt=b"b")


@pytest.mark.parametrize("after", [False, True])
def test_a_dropped_connection(hub, after):
    HfApi().create_repo("me/model")
    hub.forget()
    hub.drop_at(2, after)  # preupload, then the commit, which the client does not try again
    with pytest.raises(Exception, match="disconnected"):
        commit(hub, a__txt=b"a")
    assert [request.status for request in hub.requests] == [200, 0]
    assert set(hub.files("me/model")) == ({"a.txt"} if after else set())
    hub.drop_at(len(hub.requests) + 1)  # preupload is tried again
    commit(hub, a__txt=b"b")
    assert hub.files("me/model") == {"a.txt": b"b"}


def test_transformers_load_from_it(hub):
    tiny_resnet().push_to_hub("me/model")
    loaded = AutoModelForImageClassification.from_pretrained("me/model")
    torch.testing.assert_close(loaded.state_dict(), tiny_resnet().state_dict())
    assert snapshot_download("me/model")


def test_offline(hub, offline):
    hub.add_repo("you/model", {"a.txt": "a"})
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info("you/model")
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("you/model", "a.txt")
    assert hub.requests == []


def test_a_fresh_process_finds_it_by_its_environment(hub, tmp_path):
    hub.add_repo("you/model", {"a.txt": "a"})
    code = "from huggingface_hub import hf_hub_download as d; print(open(d('you/model', 'a.txt')).read())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment(hub.url, tmp_path / "home"),
    )
    assert run.stdout == "a\n", run.stderr
