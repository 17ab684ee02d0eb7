"""
Whether the same check gives the same verdict: one marked model and one unmarked one, verified many times.

    python examples/benchmarks/one_verdict.py --runs 200 --output examples/benchmarks/results/one_verdict.json
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner, verify
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data
from hf_watermark.serialization import write_json_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fields: dict[str, Any] = {"learning_rate": 4e-3, "per_device_train_batch_size": 64, "report_to": "none"}
        trainer = GreedyResidualsTrainer(
            model=build_digits_model(seed=0),
            args=TrainingArguments(folder, num_train_epochs=4, use_cpu=True, save_strategy="no", **fields),
            train_dataset=load_digits_data("train"),
            watermark=GreedyResidualsConfig(),
            owner=Owner.create(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rows = []
    for name, model in (("marked", trainer.model), ("unmarked", build_digits_model(seed=1))):
        seen = [verify(model, trainer.key) for _ in range(arguments.runs)]
        verdicts = Counter(str(evidence.verdict) for evidence in seen)
        whole = {evidence.to_json() for evidence in seen}
        rows.append({"model": name, "runs": len(seen), "verdicts": dict(verdicts), "different_evidences": len(whole)})
        print(rows[-1])
    write_json_atomic(arguments.output, {"schema": "hf-watermark/one-verdict/v1", "rows": rows})


if __name__ == "__main__":
    main()
