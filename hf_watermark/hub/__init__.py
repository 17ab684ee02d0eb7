"""Publishing a marked model on the Hub, and reading what others published: precommit, statement, card, files."""

from .describe import Extras
from .errors import HubError, PublishConflict
from .parts import Fidelity
from .precommit import Precommit
from .publish import Preview, Published, preview, publish
from .scan import SecretFound
from .source import Source
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
