"""A certificate of a trained model, from the command that makes it to the reader of the published statement."""

import json
import warnings

from commands import run
from tiny import patterned_images, tiny_resnet, training_arguments

from hf_watermark import CertifiedTrainer, Owner


def test_a_trained_certificate_is_published_and_read(hub, small_configs, tmp_path):
    owner, fields = Owner.create(), {"train_dataset": patterned_images(), "watermark": small_configs["certified"]}
    arguments = training_arguments(tmp_path / "model", max_steps=180)
    planned = CertifiedTrainer(model=tiny_resnet(), args=arguments, owner=owner, **fields)
    key = planned.key.bind_beacon(b"\x07" * 32, "a value of a test")
    trainer = CertifiedTrainer(model=tiny_resnet(), args=arguments, key=key, **fields)
    trainer.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_model()
        key.save(tmp_path / "keys")
        owner.save(tmp_path / "owner.json")
    secrets = ("--key", tmp_path / "keys")

    printed = run("certify", tmp_path / "model", *secrets, "--radii", "0.5,1.0", "--json").stdout
    (tmp_path / "certificate.json").write_text(printed)
    run(
        "publish", tmp_path / "model", *secrets, "--owner", tmp_path / "owner.json", "--repo-id", "me/certified",
        "--certificate", tmp_path / "certificate.json",
    )  # fmt: skip

    certificate = json.loads(printed)
    [claimed] = json.loads(run("statement", "show", "me/certified").stdout)["statement"]["certificates"]
    assert certificate["radius"] >= 0.5 and claimed["radius"] == str(certificate["radius"])
    assert (claimed["sigma"], claimed["draws"], claimed["triggers"]) == ("0.1", 200, 80)
    for point, row in zip(claimed["curve"], certificate["curves"]["0"], strict=True):
        assert (float(point["radius"]), point["certified"]) == (row["radius"], row["certified"])
        assert 0 <= 10_000 * (row["accuracy"] or 0.0) - point["accuracy_bp"] < 1
    report = json.loads(run("statement", "check", "me/certified", "--json").stdout)
    assert report["levels"][0]["outcome"] == "passed" and report["reached"] == "V1"
    assert report["levels"][0]["facts"]["certified radius (claimed)"] == f"{certificate['radius']} sigma"
    assert "certified radius" in " ".join(run("statement", "check", "me/certified").stdout.replace("│", " ").split())
    card = hub.files("me/certified")["README.md"].decode()
    assert f"| 0.5 | {claimed['curve'][0]['accuracy_bp'] / 100:.2f} % | yes |" in card
