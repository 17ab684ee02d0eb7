"""What somebody wants checked: a model, a folder, a repository read by ranges, or an endpoint that only answers."""

from .answers import AccessError, BudgetExceeded
from .pictures import ImageClassifier
from .suspect import Suspect


__all__ = ["AccessError", "BudgetExceeded", "ImageClassifier", "Suspect"]
