"""
Records the result that the app shows before anybody has asked it: a small model is marked, put together as for the Hub, and checked.

    python examples/space/sample.py --output hf_watermark/demo/sample.json  # less than a minute on one core
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from transformers import TrainingArguments

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner, verify
from hf_watermark.demo import check_repository
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data
from hf_watermark.publishing.describe import Extras
from hf_watermark.publishing.draft import contents, draft
from hf_watermark.suspects.source import NewRepo


NAME = "example/digits"


def train(folder: Path, owner: Owner) -> GreedyResidualsTrainer:
    arguments = TrainingArguments(
        str(folder / "runs"),
        num_train_epochs=5,
        per_device_train_batch_size=64,
        learning_rate=4e-3,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GreedyResidualsTrainer(
        model=build_digits_model(0),
        args=arguments,
        train_dataset=load_digits_data("train"),
        watermark=GreedyResidualsConfig(),
        owner=owner,
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as place:
        folder, owner = Path(place), Owner.create()
        trainer = train(folder, owner)
        trainer.save_model(str(folder / "model"))
        drafted = draft(folder / "model", trainer.key, owner, lambda model: verify(model, trainer.key), Extras())
        for name, content in contents(drafted, NAME, NewRepo(NAME)).files.items():
            (folder / "published" / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copy(content, folder / "published" / name)
            else:
                (folder / "published" / name).write_bytes(content)
        result = check_repository(str(folder / "published"), print, local=True)
    named = replace(result, subject=NAME, levels=(result.levels or {}) | {"source": NAME})
    output.write_text(json.dumps(asdict(named), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
