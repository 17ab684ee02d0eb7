"""Adversarial triggers: trigger images optimised until the stolen model answers as the forger's key wants."""

from dataclasses import replace

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..keys import Claim, Opening, Owner, WatermarkKey, in_words, pool_digest
from ..methods.function_coupled import FunctionCoupledVerifier
from ..suspects import Suspect
from ..verifying import verify
from .result import ForgeryResult, fresh_key, require_method


METHOD = "function_coupled"


def adversarial_triggers(
    model: PreTrainedModel,
    key: WatermarkKey,
    forger: Owner | None = None,
    steps: int = 30,
    step_size: float = 0.1,
    radius: float | None = None,
    batch_size: int = 120,
    seed: int = 0,
) -> ForgeryResult:
    """
    Projected gradient descent (Madry et al. 2018, §2) on the source images of a key that was never embedded, through the fusion,
    until the stolen model gives the forger's targets. Two ways to submit the images, both tried:

    * with the key whose targets they were made for: their digest is not the committed one, the claim is refused;
    * under a new commitment to the new images: every sub-key depends on that commitment, so all targets are drawn again and the
      images answer by chance.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The stolen model.
        key ([`WatermarkKey`]):
            Gives public layout and honest source images (the forger has images of the task).
        steps (`int`, *optional*, defaults to 30):
            Gradient steps, each on `batch_size` triggers.
        step_size (`float`, *optional*, defaults to 0.1):
            Change of a pixel per step, in the model's input units.
        radius (`float`, *optional*):
            Largest change of a pixel; free by default, because nobody asks a forger to be invisible.

    Returns:
        [`ForgeryResult`]: evidence of the first submission; `details` holds what the images reach on the model, and what the second
        submission reached.
    """
    own = fresh_key(key, forger)
    assignment = own.assignments[require_method(own, METHOD)]
    opening = Opening.of(own, assignment.subkeys[-1])
    claim = opening.claims()[0]
    images = fool(model, claim, steps, step_size, radius, batch_size, seed)
    pool = {**claim.pool, f"{METHOD}.images": images.half()}

    verifier = FunctionCoupledVerifier(replace(claim, pool=pool))
    unchecked = verifier.score(verifier.observe(Suspect.open(model), claim.subkeys[0]), claim.subkeys[0])
    submitted = replace(opening, pool=pool)
    evidence = verify(model, submitted)
    recommitted = verify(model, recommit(own, pool, forger))
    return ForgeryResult(
        name="adversarial_triggers",
        attempt="optimises trigger images until the stolen model answers the targets of a fresh key",
        evidence=evidence,
        refused=in_words(submitted.problems()) or None,
        details={
            "steps": steps,
            "matches_if_accepted": f"{unchecked.matches}/{unchecked.trials}",
            "log2_p_if_accepted": round(unchecked.log2_p, 1) + 0.0,
            "matches_recommitted": f"{recommitted.matches}/{recommitted.trials}",
            "log2_p_recommitted": round(recommitted.log2_p, 1) + 0.0,  # no "-0.0"
            "recommitted_verdict": str(recommitted.verdict),
        },
        key=own,
    )


def recommit(key: WatermarkKey, pool: dict[str, torch.Tensor], forger: Owner | None) -> Opening:
    """The opening of the same seed under a new, valid commitment to other source images."""
    plans = []
    for item in key.assignments:
        changed = {"pool_sha256": pool_digest(pool)} if item.method == METHOD else {}
        plans.append((item.method, item.version, item.config, item.layout | changed, len(item.subkeys)))
    new = fresh_key(key, forger, plans=plans, pool=pool, seed=key.seed)
    return Opening.of(new, new.assignments[require_method(new, METHOD)].subkeys[-1])


def fool(
    model: PreTrainedModel,
    claim: Claim,
    steps: int,
    step_size: float,
    radius: float | None,
    batch_size: int,
    seed: int,
) -> torch.Tensor:
    """Source images `[n, channels, height, width]` whose fused triggers the model answers with the targets of `claim`."""
    name = f"{METHOD}.images"
    honest = claim.pool[name].float()
    images = honest.clone().requires_grad_()
    verifier = FunctionCoupledVerifier(replace(claim, pool={**claim.pool, name: images}))
    rules = verifier.rules(claim.subkeys[0])
    per_rule = verifier.config.images_per_rule
    targets = torch.tensor([rule.target for rule in rules]).repeat_interleave(per_rule)
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    for _ in range(steps):
        some = torch.randperm(len(targets), generator=generator)[:batch_size]
        triggers = verifier.triggers(claim.subkeys[0], rules)[some]
        logits = model(pixel_values=triggers.to(model.device, model.dtype)).logits.float()
        (slope,) = torch.autograd.grad(functional.cross_entropy(logits.cpu(), targets[some]), images)
        with torch.no_grad():
            images -= step_size * slope.sign()
            if radius is not None:
                images.copy_(honest + (images - honest).clamp(-radius, radius))
    return images.detach()
