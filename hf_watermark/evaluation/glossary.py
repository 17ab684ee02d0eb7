"""What the words of a page mean, for people who decide and are no engineers."""

GLOSSARY = {
    "basis": "On whose word the result rests. “Claim”: on a signed, published statement that was checked here. “Self-check”: only on the word of "
    "whoever held the key.",
    "beacon": "A random number that a public source gives out at a known time. A key that is bound to one cannot have been searched for before.",
    "control": "A check of the check. The claimant's own model must show the mark; models without it, and random keys, must not.",
    "decoy key": "A random key that goes through the same code on the same model. Decoys show what chance alone gives.",
    "level": "How strong the evidence has to be. Level B asks for log2 p of −64 or less and is enough where a public random value and the dates are "
    "proven; level N asks for −128 or less and applies everywhere else.",
    "log2 p": "The strength of the evidence: the chance that an unrelated key does as well, as a power of two. −64 is about one in 10 million "
    "million million. It is not the probability that the suspect is independent.",
    "look": "One try. Whoever tries often finds something by chance, so every try that was made, or could have been, is charged.",
    "model ruined": "The attack left less than half of the model's accuracy. A thief who does this has lost what they stole, so such an attack "
    "counts neither as survived nor as a removal.",
    "opening": "One sub-key that the claimant showed to the judge, with a proof that it was committed.",
    "reference": "The claimant's published model, by which a suspect with reordered channels is put into the old order before it is read. It "
    "counts only if it was dated before the suspect appeared.",
    "removal attack": "Something that a thief does to a stolen model to get rid of the mark.",
    "retention": "The share of matches, rescaled so that 1 is all of them and 0.5 what an unrelated key reaches once in twenty tries.",
    "statement": "The signed file beside the claimant's published model: which files, which committed key, which date.",
    "stealing loss": "The accuracy of the unmarked twin minus that of the attacked model: what the attack costs the thief.",
    "sub-key": "One of several independent secrets of one key. Each can prove the mark alone, and each is used up by being shown.",
    "twin": "The same model trained the same way without a mark.",
}


def explained(*names: str) -> dict[str, str]:
    """The named part of [`GLOSSARY`], in its order."""
    unknown = set(names) - set(GLOSSARY)
    if unknown:
        raise KeyError(f"not in the glossary: {sorted(unknown)}")
    return {name: meaning for name, meaning in GLOSSARY.items() if name in names}
