"""What somebody wants checked: a model, a folder, a repository read by ranges, or an endpoint that only answers."""

from .pictures import ImageClassifier
from .suspect import AccessError, BudgetExceeded, Suspect


__all__ = ["AccessError", "BudgetExceeded", "ImageClassifier", "Suspect"]
