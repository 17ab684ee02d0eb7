"""What an evaluation says of a mark, and what follows from it: the best checkpoint, an early end, a search for hyperparameters."""

from typing import Any

from transformers.trainer_utils import default_compute_objective

from .marks import Marks
from .publishing import PublishingTrainer


# What an evaluation calls the evidence for a mark.
READING = "watermark_log2_p"


def named_readings(readings: dict[str, float], prefix: str) -> dict[str, float]:
    """Metrics of an evaluation from log2 p by method."""
    many = len(readings) > 1
    return {
        f"{prefix}_{READING}" + (f"_{method}" if many else ""): round(value, 1) for method, value in readings.items()
    }


def objective(metrics: dict[str, float]) -> float:
    """What a search for hyperparameters compares: transformers' default, without the evidence for the mark."""
    return default_compute_objective({name: value for name, value in metrics.items() if READING not in name})


class EvaluatingTrainer(PublishingTrainer):
    """[`~transformers.Trainer`] whose evaluations read the mark of the model in training."""

    marks: Marks
    _evaluates = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Metrics as ever, and under `eval_watermark_log2_p` the evidence for the mark as it is now, of the weakest sub-key of each method."""
        self._evaluates = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluates = False

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if self._evaluates and output.metrics is not None:  # it does not only predict; here, so that callbacks see it
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            output.metrics.update(named_readings(self.marks.readings(), prefix))
        return output

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As ever; where no `compute_objective` is given, the evidence for the mark is left out of it."""
        return super().hyperparameter_search(hp_space, compute_objective or objective, *args, **kwargs)

    def refuse_weakest_as_best(self) -> None:
        """
        Raises:
            `ValueError`: where the checkpoint with the weakest mark would be taken for the best.
        """
        metric = str(self.args.metric_for_best_model or "")
        if READING in metric and self.args.greater_is_better:
            raise ValueError(
                f"`metric_for_best_model` is {metric!r}, where the least is the strongest mark, and `greater_is_better` is True (its default): set "
                "`greater_is_better=False`"
            )


__all__ = ["EvaluatingTrainer", "objective"]
