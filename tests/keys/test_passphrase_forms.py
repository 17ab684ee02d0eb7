"""A passphrase typed on another system opens key folder and backup (an umlaut is one character here, two there)."""

import pytest

from hf_watermark import WatermarkKey
from hf_watermark.keys import envelope, export_key, import_key


COMPOSED, DECOMPOSED = "Schl\u00fcsselwort-lang", "Schlu\u0308sselwort-lang"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(envelope, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})


@pytest.mark.parametrize(("sealed", "typed"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_key_folder_and_backup(owner, tmp_path, sealed, typed):
    key = WatermarkKey.create(owner, [("greedy_residuals", "1", {"bits": 128}, {"carriers": []}, 3)])
    folder = key.save(tmp_path / "keys", sealed)
    assert WatermarkKey.load(folder, typed).seed == key.seed
    backup = export_key(folder, tmp_path / "backup.json", sealed, typed)
    restored = import_key(backup, tmp_path / "restored", typed, sealed)
    assert WatermarkKey.load(restored, typed).seed == key.seed
