"""Counterfeits: a key fitted to the stolen model after the fact."""

from dataclasses import replace
from typing import Any

from ..keys import Opening, Owner, WatermarkKey, in_words
from ..methods.greedy_residuals import GreedyResidualsVerifier
from ..suspects import Suspect
from ..verifying import verify
from .key_search import search_subkey
from .result import ForgeryResult, fresh_key, require_method


METHOD = "greedy_residuals"


def counterfeit(suspect: Any, key: WatermarkKey, forger: Owner | None = None, tries: int = 200) -> list[ForgeryResult]:
    """
    Free-message forgeries (Fan et al. 2019 call them ambiguity attacks): instead of marking a model, the forger fits his claim to it.

    In a scheme where the claimant names his own message this is trivial: the message is whatever the model already says, and
    every bit matches. Here bits and positions follow from a committed secret, so the forger must change something after the
    commitment, and each change is refused with its reason. He holds a properly committed and signed key of his own.

    Args:
        suspect:
            The stolen model: whatever [`verify`] takes.
        key ([`WatermarkKey`]):
            Gives the public layout; its secrets are not used.
        forger ([`Owner`], *optional*):
            Signs the forger's key; a new one by default.
        tries (`int`, *optional*, defaults to 200):
            Secrets that the forger chooses from.

    Returns:
        `list[ForgeryResult]`: a freely chosen secret, an edited config, an edited layout.
    """
    own = fresh_key(key, forger)
    assignment = own.assignments[require_method(own, METHOD)]
    opened = Suspect.open(suspect, key.backbone)
    # Not the public one, which would be refused for this reason alone.
    opening = Opening.of(own, assignment.subkeys[-1])
    verifier = GreedyResidualsVerifier(opening.claims()[0])
    place = verifier.claim.subkeys[0]
    observation = verifier.observe(opened, place)
    fitted = search_subkey(verifier, observation, place, tries)
    free = {
        "bits_if_the_message_were_free": f"{free_message(verifier, observation, place)}/{verifier.config.bits}",
        "log2_p_of_the_fitted_secret": round(verifier.score(observation, fitted).log2_p, 1),
    }
    bits = assignment.config["bits"] // 2
    others = [
        carrier | {"every_third_input": not carrier["every_third_input"]} for carrier in assignment.layout["carriers"]
    ]
    edits = {
        "counterfeit_secret": ("opens a secret chosen to fit the model", replace(opening, secret=fitted.secret)),
        "counterfeit_config": (
            f"counts only {bits} bits, after looking at the model",
            replace(opening, assignment=replace(assignment, config={**assignment.config, "bits": bits})),
        ),
        "counterfeit_layout": (
            "reads other columns of the weights, after looking at the model",
            replace(opening, assignment=replace(assignment, layout={**assignment.layout, "carriers": others})),
        ),
    }
    results = []
    for name, (attempt, claim) in edits.items():
        refused = in_words(claim.problems()) or None
        results.append(ForgeryResult(name, attempt, verify(opened, claim), refused, dict(free), key=own))
    return results


def free_message(verifier: GreedyResidualsVerifier, observation: Any, subkey: Any) -> int:
    """Bits that match when the claimant names the message himself: all whose residual is not exactly zero."""
    return int((verifier.extract(observation, subkey) != 0).sum())
