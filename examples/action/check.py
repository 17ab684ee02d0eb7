"""
What a model card says of its base model against the marks that are in the weights, as SARIF 2.1.0.

    MARKS_REPO=somebody/model MARKS_KEYS="me/base /secret/keys/base" MARKS_SARIF=marks.sarif python examples/action/check.py

A mark whose base model the card does not name is an error; a base model that the card names and whose mark is not seen is a note, because marks can be lost. Exit
status 1 where there is an error.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_watermark import WatermarkKey, verify
from hf_watermark.evidence import SELF_CHECK, Evidence
from hf_watermark.package import VERSION
from hf_watermark.suspects.source import Source


RULES = {
    "undeclared-origin": "The weights carry the mark of a model that the card does not name as a base model.",
    "declared-origin-not-seen": "The card names a base model whose mark was not seen. That proves nothing: marks can be lost.",
    "not-read": "The weights could not be read under a key, so nothing is said about its mark.",
}
LEVELS = {"undeclared-origin": "error", "declared-origin-not-seen": "note", "not-read": "warning"}


def declared_by(card: str) -> set[str]:
    """The base models that the metadata of a card names."""
    named = ModelCard(card, ignore_metadata_errors=True).data.to_dict().get("base_model") or []
    return {str(name) for name in ([named] if isinstance(named, str) else named)}


def findings(declared: set[str], found: Mapping[str, Evidence]) -> list[tuple[str, str]]:
    """Pairs of rule and message, by what each base model's key gave."""
    results = []
    for base, evidence in found.items():
        seen = evidence.log2_p <= SELF_CHECK and not evidence.disclosed and not evidence.controls.get("failed")
        if seen and base not in declared:
            results.append(
                ("undeclared-origin", f"carries the mark of {base} ({evidence}); the card names {said(declared)}")
            )
        elif not seen and not evidence.trials:
            results.append(("not-read", f"{base}: {evidence.reason}"))
        elif not seen and base in declared:
            results.append(("declared-origin-not-seen", f"the mark of {base} was not seen ({evidence.reason})"))
    return results


def said(declared: set[str]) -> str:
    return ", ".join(sorted(declared)) or "no base model"


def sarif_of(results: Sequence[tuple[str, str]], place: str = "README.md") -> dict[str, Any]:
    rules = [
        {"id": name, "shortDescription": {"text": text}, "defaultConfiguration": {"level": LEVELS[name]}}
        for name, text in RULES.items()
    ]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "hf-watermark", "version": VERSION, "rules": rules}},
                "results": [
                    {
                        "ruleId": rule,
                        "level": LEVELS[rule],
                        "message": {"text": text},
                        "locations": [
                            {"physicalLocation": {"artifactLocation": {"uri": place}, "region": {"startLine": 1}}}
                        ],
                    }
                    for rule, text in results
                ],
            }
        ],
    }


def keys_from(text: str) -> dict[str, WatermarkKey]:
    """Lines `base-model key-folder`."""
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return {base: WatermarkKey.load(folder.strip()) for base, folder in pairs}


def check(repo: str, keys: Mapping[str, WatermarkKey]) -> list[tuple[str, str]]:
    card = Source.open(repo).read("README.md")
    looks = len(keys)
    return findings(
        declared_by((card or b"").decode(errors="replace")),
        {base: verify(repo, key, looks=looks) for base, key in keys.items()},
    )


def main() -> int:
    results = check(os.environ["MARKS_REPO"], keys_from(os.environ["MARKS_KEYS"]))
    Path(os.environ.get("MARKS_SARIF", "marks.sarif")).write_text(json.dumps(sarif_of(results), indent=2) + "\n")
    for rule, text in results:
        print(f"{LEVELS[rule]}: {text}")
    return int(any(LEVELS[rule] == "error" for rule, _ in results))


if __name__ == "__main__":
    raise SystemExit(main())
