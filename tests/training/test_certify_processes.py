"""Two processes (gloo, DDP) share the noise draws of a certificate and get the certificate of one; they stay equal while they train."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from together import run_together
from trainer_runs import arguments, build, images

from hf_watermark import CertifiedConfig, CertifiedTrainer, Owner, WatermarkKey
from hf_watermark.methods.certified import certificate, released
from hf_watermark.training.embedding import Moment


CONFIG = CertifiedConfig(triggers=40, sigma=0.3, strength=1.0, trigger_ratio=4.0, draws=61, suspect_draws=20)
RELEASED = CertifiedConfig(**vars(CONFIG) | {"schedule": "released"})
QUESTIONS = {
    "curve": {"radii": (0.25, 0.5, 1.0)},
    "decision": {"radii": (0.25, 0.5), "at_least": 0.9},
    "one draw more": {"radii": (0.5,), "draws": 62, "confidence": 0.9},
}


def make(folder: Path, config: CertifiedConfig = CONFIG, **changes) -> CertifiedTrainer:
    """`owner=` or `key=` among the changes, the rest are training arguments."""
    identity = {name: changes.pop(name) for name in ("owner", "key") if name in changes}
    return CertifiedTrainer(
        model=build("resnet"),
        args=arguments(folder, **changes),
        train_dataset=images(120),
        watermark=config,
        **identity,
    )


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """A folder with two keys, the model that one process marked under the first, and what two processes wrote."""
    folder = tmp_path_factory.mktemp("certify")
    make(folder / "out", RELEASED, owner=Owner.create()).key.save(folder / "key-released")
    trainer = make(folder / "out", owner=Owner.create(), max_steps=120, per_device_train_batch_size=16)
    trainer.key.save(folder / "key-amortised")
    trainer.train()
    save_file(trainer.model.state_dict(), folder / "marked.safetensors")
    run_together(__file__, str(folder))
    return folder


@pytest.fixture(scope="module")
def alone(marked: Path) -> dict[str, dict]:
    """Certificates by question, from this process."""
    trainer = make(marked / "out", key=WatermarkKey.load(marked / "key-amortised"))
    trainer.model.load_state_dict(load_file(marked / "marked.safetensors"))
    documents, _ = ask(trainer, [])
    return json.loads(json.dumps(documents))


@pytest.fixture(scope="module")
def facts(marked: Path) -> list[dict]:
    return [json.loads((marked / f"facts-rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", QUESTIONS)
def test_two_processes_give_the_certificate_of_one(alone: dict, facts: list[dict], name: str):
    assert alone[name]["certified"] and alone[name]["curves"]["0"][0]["matches"] > 30
    for fact in facts:
        assert fact["certificates"][name] == alone[name]


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_certificate_is_that_of_the_model_that_will_be_saved(alone: dict, facts: list[dict], name: str):
    # DDP leaves every process with the running statistics of its own last batch; the first process saves the model.
    for fact in facts:
        assert fact["after other batches"][name] == alone[name]


def test_each_process_ran_half_of_the_draws(facts: list[dict]):
    assert sorted(fact["draws"]["curve"] for fact in facts) == [30, 31]
    assert [fact["draws"]["one draw more"] for fact in facts] == [31, 31]


@pytest.mark.parametrize("schedule", ["amortised", "released"])
def test_processes_stay_equal_while_they_train(marked: Path, schedule: str):
    first, second = (load_file(marked / f"{schedule}-rank{rank}.safetensors") for rank in (0, 1))
    start = dict(build("resnet").named_parameters())
    assert not any(torch.equal(first[name], start[name]) for name in start)
    assert all(torch.equal(first[name], second[name]) for name in start)


def test_processes_draw_different_noise(facts: list[dict]):
    seeds = [set(fact["seeds"]) for fact in facts]
    assert len(seeds[0]) == len(seeds[1]) == 3 and not seeds[0] & seeds[1]


def watch_draws() -> list[int]:
    """Seeds of the noisy nets that this process runs."""
    used: list[int] = []

    class Watching(certificate.NoisyNets):
        def answers(self, seeds, images):
            seeds = list(seeds)
            for seed, answer in zip(seeds, super().answers(seeds, images), strict=True):
                used.append(seed)
                yield answer

    certificate.NoisyNets = Watching  # type: ignore[misc]
    return used


def ask(trainer: CertifiedTrainer, used: list[int]) -> tuple[dict[str, dict], dict[str, int]]:
    """Certificates by question, and how many draws this process ran for each."""
    documents, draws = {}, {}
    for name, question in QUESTIONS.items():
        used.clear()
        documents[name], draws[name] = trainer.certify(**question).to_dict(), len(used)
    return documents, draws


def train(folder: Path, config: CertifiedConfig, **changes) -> None:
    trainer = make(folder / "out", config, key=WatermarkKey.load(folder / f"key-{config.schedule}"), **changes)
    trainer.train()
    path = folder / f"{config.schedule}-rank{trainer.accelerator.process_index}.safetensors"
    save_file(trainer.accelerator.unwrap_model(trainer.model).state_dict(), path)


def main(folder: Path) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    used, trainer = watch_draws(), make(folder / "out", key=WatermarkKey.load(folder / "key-amortised"))
    rank = trainer.accelerator.process_index
    trainer.model.load_state_dict(load_file(folder / "marked.safetensors"))
    facts: dict = {"seeds": []}
    facts["certificates"], facts["draws"] = ask(trainer, used)
    for name, buffer in trainer.model.named_buffers():
        if rank == 1 and name.endswith("running_var"):
            buffer *= 9
    facts["after other batches"], _ = ask(trainer, used)

    original = Moment.seed
    Moment.seed = lambda *args: facts["seeds"].append(original(*args)) or facts["seeds"][-1]  # type: ignore[method-assign]
    train(folder, CONFIG, max_steps=3)
    Moment.seed = original  # type: ignore[method-assign]
    released.DRAWS, released.LEVELS = 2, 2
    train(folder, RELEASED, num_train_epochs=2)
    (folder / f"facts-rank{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
