"""What a file really is, whatever its name says: archives and pickles are never published, and text is text."""

import mmap
import pickletools
import re
import zipfile
from pathlib import Path

from ..serialization import InvalidInput, read_safetensors_header
from ..serialization.kinds import ARCHIVES


ARCHIVE_SUFFIXES = (
    ".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".gz", ".bz2", ".xz", ".lzma", ".zst", ".7z", ".rar", ".lz4", ".z", ".br",
    ".jar", ".whl", ".egg", ".cab", ".iso", ".mar",
)  # fmt: skip
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib", ".msgpack", ".h5")
_STARTS = ARCHIVES | {
    b"\x93NUMPY": "a numpy file, which can hold a pickle", b"\x89HDF\r\n\x1a\n": "an HDF5 file, which can hold a pickle",
}  # fmt: skip
# Long enough that no image holds one by chance: archives behind or inside something else.
_INSIDE = re.compile(
    rb"PK\x03\x04[\x0a\x14\x2d\x3f]\x00|PK\x05\x06\x00\x00\x00\x00|7z\xbc\xaf\x27\x1c|\xfd7zXZ\x00|Rar!\x1a\x07"
)
# The same as base64 text, at the start of a long run of it.
_AS_TEXT = re.compile(
    rb"(?<![A-Za-z0-9+/])(?:UEsDB|H4sI|QlpoO?|N3q8r|/Td6WF|UmFyIRo|KLUv/|gASV)[A-Za-z0-9+/\r\n]{120,}"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
TEXT_BYTES = 2**24


def container(path: Path) -> str | None:
    """
    The kind of archive or pickle that a file is or holds in plain sight, in words; `None` when it is neither. Names play no part.

    A safetensors file starts with a number, which can look like the start of anything: ask [`problem_of_weights`] about those.
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data[:512]
        for start, words in _STARTS.items():
            if head.startswith(start):
                return words
        if _is_tar(head):
            return "a tar archive"
        if _INSIDE.search(data) or _ends_as_zip(path):
            return "a file with an archive inside"
        if _AS_TEXT.search(data):
            return "a file with an archive inside, as base64 text"
        return "a pickle" if _is_pickle(data) else None


def problem_of_text(path: Path) -> str | None:
    """Why a file is no plain text; `None` when it is."""
    if path.stat().st_size > TEXT_BYTES:
        return f"has more than {TEXT_BYTES} bytes"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return "is no UTF-8 text"
    return "holds control characters, so it is no plain text" if _CONTROLS.search(text) else None


def problem_of_json(path: Path) -> str | None:
    """Why a file is no JSON text. Metrics may hold NaN, so it is not parsed here."""
    problem = problem_of_text(path)
    starts = path.read_bytes()[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return problem if problem or starts in (b"{", b"[") else "is no JSON document"


def problem_of_image(path: Path) -> str | None:
    """Why a file is no PNG or JPEG image from its first byte to its last."""
    data = path.read_bytes()
    if data.startswith(PNG):
        return None if _end_of_png(data) == len(data) else "goes on after the end of the image"
    if data.startswith(JPEG):
        return None if data.endswith(b"\xff\xd9") else "goes on after the end of the image"
    return "is no PNG or JPEG image"


def problem_of_weights(path: Path) -> str | None:
    """Why a file is no safetensors file, byte for byte; or that an archive can be unpacked from it."""
    try:
        read_safetensors_header(path)
    except InvalidInput as error:
        return str(error)
    return "is a zip archive as well" if _ends_as_zip(path) else None


def _is_tar(head: bytes) -> bool:
    """By the checksum that every tar header has, with or without `ustar` (POSIX.1-1988)."""
    if len(head) < 512:
        return False
    try:
        wanted = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return wanted == sum(head[:148]) + 8 * ord(" ") + sum(head[156:])


def _ends_as_zip(path: Path) -> bool:
    """A zip archive is read from its end, so anything can stand before it. Only its list of names is looked at."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _is_pickle(data: mmap.mmap) -> bool:
    """Whether the bytes are one pickle from start to end, in any protocol; the oldest one is printable. Nothing in it is run."""
    if data[:1] == b"\x80" and data[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    end: int | None = None
    try:
        for _, _, place in pickletools.genops(data[:TEXT_BYTES]):
            end = place
    except Exception:  # pickletools raises whatever its readers raise
        return False
    # A lone full stop would be a pickle of nothing.
    return bool(end) and not data[(end or 0) + 1 : TEXT_BYTES].strip()


def _end_of_png(data: bytes) -> int:
    """Where the last chunk ends; -1 for a broken file."""
    place = len(PNG)
    while place + 12 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            return place
    return -1
