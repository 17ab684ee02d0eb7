"""One encrypted file that holds a whole key folder, to be kept somewhere else (PROTOCOL.md §1.2, D4)."""

import base64
import binascii
import re
import secrets
import shutil
import warnings
from pathlib import Path

from ..serialization import InvalidInput, make_private_dir, read_private_bytes, write_bytes_atomic
from ..serialization.files import naming
from .envelope import seal, unseal, write_envelope
from .folders import KEY_FILE, refuse_model_folder
from .watermark_key import WatermarkKey


KIND = "key-backup"
# A pool of 1,000 colour images at 64 x 64 has 50 MB; base64 twice makes 90 of them, and sealing them takes a gigabyte of memory.
BACKUP_BYTES, FOLDER_BYTES, MOST_FILES = 128 * 2**20, 64 * 2**20, 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def export_key(folder: str | Path, path: str | Path, backup_passphrase: str, passphrase: str | None = None) -> Path:
    """
    Writes a key folder, its source images and its log of opened sub-keys included, into one new encrypted file.

    The key is loaded and checked first: a backup of a damaged key would be found out too late.

    Args:
        folder (`str` or `Path`):
            What [`WatermarkKey.save`] wrote.
        path (`str` or `Path`):
            The file; an existing one is left alone.
        backup_passphrase (`str`):
            At least 12 characters. Whoever has file and passphrase is as good as the owner of this key.
        passphrase (`str`, *optional*):
            What opens the key folder.

    Raises:
        [`~serialization.InvalidInput`]: when the folder holds no sound key, or more than fits into a backup.
        `ValueError`: when `path` lies inside a model folder.
        `FileExistsError`: when `path` is taken.
    """
    folder = Path(folder)
    refuse_model_folder(Path(path))
    key = WatermarkKey.load(folder, passphrase)
    files: dict[str, str] = {}
    left = FOLDER_BYTES
    for place in sorted(folder.iterdir()):
        if place.name == KEY_FILE or not place.is_file() or not _NAME.fullmatch(place.name):
            continue
        if place.stat().st_size > left or len(files) == MOST_FILES:
            raise InvalidInput(
                f"{place}: a backup takes {MOST_FILES} files of {FOLDER_BYTES} bytes together; copy {place.name} by other means"
            )
        files[place.name] = base64.b64encode(place.read_bytes()).decode()
        left -= place.stat().st_size
    payload = {"kind": KIND, "key": key._payload(), "files": files}
    write_bytes_atomic(path, seal(payload, backup_passphrase), mode=0o600, overwrite=False)
    return Path(path)


def import_key(path: str | Path, folder: str | Path, backup_passphrase: str, passphrase: str | None = None) -> Path:
    """
    Makes the key folder of a backup again. It appears complete and checked, or not at all.

    Args:
        folder (`str` or `Path`):
            A folder that does not exist yet.
        passphrase (`str`, *optional*):
            Encrypts the new key folder; without one only its file mode protects it.

    Raises:
        [`~keys.WrongPassphrase`]: when the passphrase is missing or wrong.
        [`~serialization.InvalidInput`]: when the file is no backup, or was edited or damaged.
        `FileExistsError`: when `folder` is taken.
    """
    folder = Path(folder)
    refuse_model_folder(folder)
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists and is left as it is; choose another folder for the key")
    payload = unseal(read_private_bytes(path, BACKUP_BYTES), backup_passphrase, str(path), BACKUP_BYTES)
    if payload.get("kind") != KIND or not isinstance(payload.get("key"), dict):
        raise InvalidInput(f"{path}: holds a {str(payload.get('kind'))[:40]!r}, not the backup of a key")
    files = _files(payload, path)
    staging = folder.with_name(f".{secrets.token_hex(8)}.tmp")
    make_private_dir(staging)
    try:
        with warnings.catch_warnings():
            if passphrase is None:
                # Names the staging folder; the caller is warned below, with the name that stays.
                warnings.simplefilter("ignore")
            write_envelope(staging / KEY_FILE, payload["key"], passphrase, overwrite=False)
        for name, content in files.items():
            write_bytes_atomic(staging / name, content, mode=0o600)
        with naming(path):
            WatermarkKey.load(staging, passphrase)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging)
        raise
    if passphrase is None:
        warnings.warn(f"{folder / KEY_FILE} is stored without a passphrase", stacklevel=2)
    return folder


def _files(payload: dict, path: str | Path) -> dict[str, bytes]:
    files = payload.get("files")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise InvalidInput(f"{path}: lists no files, or too many")
    # A name from a file never becomes a path.
    if not all(_NAME.fullmatch(name) and name != KEY_FILE for name in files):
        raise InvalidInput(f"{path}: names a file that belongs into no key folder")
    try:
        return {name: base64.b64decode(text, validate=True) for name, text in files.items()}
    except (binascii.Error, TypeError, ValueError):
        raise InvalidInput(f"{path}: a file in it is not base64") from None
