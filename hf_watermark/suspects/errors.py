"""What can go wrong between here and the Hub, in words that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..serialization import InvalidInput


# The base class of the HTTP library underneath, which is another one in other versions of the client.
NetworkError: type[Exception] = HfHubHTTPError.__bases__[0]


class HubError(InvalidInput):
    """A repository cannot be read or written; the message says why and what to do."""


class PublishConflict(HubError):
    """Somebody else changed the repository in between; nothing was written."""


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """
    Turns the client's errors about repository `name` into [`HubError`].

    Raises:
        [`HubError`]: private, gated, missing, offline, unreachable; each with its own words.
    """
    try:
        yield
    except GatedRepoError:
        raise HubError(
            f"{name}: is gated; ask for access on its page, then log in with `hf auth login`. This says nothing about a mark"
        ) from None
    except RepositoryNotFoundError:
        # Whoever meant a path gave the name of a repository without knowing.
        parent = Path(name).parent
        here = (
            f" (and the folder {parent} on this machine holds nothing of that name)"
            if "/" in name and parent.is_dir()
            else ""
        )
        raise HubError(
            f"{name}: does not exist, or is private{here}; check the name, or log in with `hf auth login`. This says nothing about a mark"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{name}: has no such revision; give a branch or a commit of its history") from None
    except RemoteEntryNotFoundError as error:
        raise HubError(f"{name}: {_first_line(error)}") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise HubError(
            f"{name}: cannot be reached: this process is offline (HF_HUB_OFFLINE) or the network is down, and the file is not cached; "
            "give a local folder instead"
        ) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 412:
            raise PublishConflict(
                f"{name}: somebody else committed to it in the meantime, so nothing was written; look at their commit and publish again"
            ) from None
        raise HubError(f"{name}: the Hub refused: {_first_line(error)}") from None
    except (NetworkError, ConnectionError) as error:
        # Authorities and relays are asked through here as well.
        where = "" if "://" in name else " to the Hub"
        raise HubError(
            f"{name}: the connection{where} broke ({_first_line(error)}); try again, nothing is half-written"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
