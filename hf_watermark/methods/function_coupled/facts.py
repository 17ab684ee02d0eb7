"""Facts of function-coupled rules."""

from typing import TYPE_CHECKING

from ...configuration.facts import MethodFacts, Null


if TYPE_CHECKING:
    from .config import FunctionCoupledConfig


class FunctionCoupledFacts(MethodFacts):
    def null(self, config: "FunctionCoupledConfig", classes: int) -> Null:
        # The target of a rule is none of its two sources. It is drawn once for all images of the rule.
        return Null(1 / max(1, classes - 2), config.images_per_rule)

    def most_units(self, config: "FunctionCoupledConfig", classes: int) -> int:
        from ...training.triggers import LAYOUTS, rule_capacity

        return rule_capacity(min(classes, config.source_classes), LAYOUTS if config.fusion == "direct" else 1, 1)

    def queries(self, config: "FunctionCoupledConfig", classes: int) -> int:
        return config.rules * config.images_per_rule


FACTS = {
    "function_coupled": FunctionCoupledFacts(
        "labels",
        "rules on images fused of two classes of the training data",
        unit="rules",
        field="rules",
        assumption="the answers to one rule agree; exact binomial over rules",
    )
}
