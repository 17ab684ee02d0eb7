"""Publishing a marked model on the Hub, and reading what others published: precommit, statement, card, files."""

from .describe import Extras
from .errors import HubError, PublishConflict
from .precommit import Precommit
from .publish import Published, publish
from .scan import SecretFound
from .source import Source
from .statement import Fidelity, SignedStatement, Statement


__all__ = [
    "Extras",
    "Fidelity",
    "HubError",
    "Precommit",
    "PublishConflict",
    "Published",
    "SecretFound",
    "SignedStatement",
    "Source",
    "Statement",
    "publish",
]
