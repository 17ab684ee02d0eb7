"""Publishing a marked model on the Hub, and reading what others published: precommit, statement, card, files."""

from ..suspects.errors import HubError, PublishConflict
from ..suspects.source import Source
from .describe import Extras
from .parts import Fidelity
from .precommit import Precommit
from .publish import Preview, Published, preview, publish
from .scan import SecretFound
from .statement import SignedStatement, Statement


__all__ = [
    "Extras",
    "Fidelity",
    "HubError",
    "Precommit",
    "Preview",
    "PublishConflict",
    "Published",
    "SecretFound",
    "SignedStatement",
    "Source",
    "Statement",
    "preview",
    "publish",
]
