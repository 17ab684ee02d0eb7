"""Opening untrusted files, and atomic writing of our own."""

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


if sys.platform == "win32":
    OPEN_FLAGS, NO_FOLLOW = os.O_BINARY, 0
else:
    # O_NONBLOCK: opening a named pipe must not wait for somebody to write into it.
    OPEN_FLAGS, NO_FOLLOW = os.O_NONBLOCK, os.O_NOFOLLOW


class InvalidInput(ValueError):
    """
    An untrusted file, document or argument breaks its format or a limit; the message says which and where.

    Example:

    ```python
    >>> try:
    ...     WatermarkKey.load("no-such-folder")
    ... except InvalidInput as error:
    ...     print("no key:", error)
    no key: no-such-folder...
    ```
    """


class Unreadable(InvalidInput):
    """A suspect cannot be read under this key, or in this form. That says nothing about a mark: the verdict is `inconclusive`."""


def write_bytes_atomic(path: str | Path, data: bytes, mode: int = 0o644, overwrite: bool = True) -> None:
    """
    Writes a file completely or not at all.

    The bytes go to a new file in the same folder, reach the disk, and only then take the name; a failure leaves an
    existing file untouched and no temporary file behind. A symlink at `path` is replaced, never followed.

    Args:
        path (`str` or `Path`): Target, in an existing folder.
        data (`bytes`): Content.
        mode (`int`, *optional*, defaults to `0o644`): Permission bits, reduced by the umask.
        overwrite (`bool`, *optional*, defaults to `True`): Replace an existing file.

    Raises:
        `FileExistsError`: when `overwrite=False` and the name is taken.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS | NO_FOLLOW
    descriptor = os.open(temporary, create, mode)
    leftovers = [temporary]
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            # Takes the name, or fails if somebody else just did; unlike a hard link it works on every file system.
            os.close(os.open(path, create, mode))
            leftovers.append(path)
        os.replace(temporary, path)
    except BaseException:
        for leftover in leftovers:
            leftover.unlink()
        raise


def refuse_existing(path: Path) -> None:
    """Raises `FileExistsError` when the name is taken, also by a broken link."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists and is left as it is; choose another path or allow overwriting.")


def make_private_dir(path: str | Path) -> None:
    """
    Creates a folder for secrets with mode 0700, parents with the usual mode.

    An existing folder keeps its rights: it may hold other things, and [`read_private_bytes`] checks each secret file.
    """
    Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)


def read_private_bytes(path: str | Path, max_bytes: int) -> bytes:
    """
    Reads a secret file, but only one that nobody else could have read or put there.

    Args:
        path (`str` or `Path`): The file.
        max_bytes (`int`): Largest accepted size.

    Returns:
        `bytes`: The content.

    Raises:
        [`InvalidInput`]: when the file is missing, a symlink, too large or, on POSIX systems, owned by another user or
            open to group or others.
    """
    with naming(path):
        if Path(path).is_symlink():
            raise InvalidInput("is a symlink; secrets are only read from the file itself.")
        with open_regular(path, NO_FOLLOW) as (file, status):
            if sys.platform != "win32":
                if status.st_uid != os.geteuid():
                    raise InvalidInput(f"belongs to user {status.st_uid}, not to you; do not trust it.")
                if status.st_mode & 0o077:
                    rights = stat.S_IMODE(status.st_mode)
                    raise InvalidInput(f"has mode {rights:04o}, others have access; run `chmod 600` on it.")
            return read_all(file, max_bytes)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


@contextmanager
def open_regular(path: str | Path, flags: int = 0) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | OPEN_FLAGS | flags)
    except OSError as error:
        raise InvalidInput(f"cannot be opened ({error.strerror}).") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidInput("is not a regular file.")
    with os.fdopen(descriptor, "rb") as file:
        yield file, status


def read_all(file: BinaryIO, max_bytes: int) -> bytes:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InvalidInput(f"is larger than {max_bytes} bytes.")
    return data
