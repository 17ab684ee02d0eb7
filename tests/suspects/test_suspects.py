"""Suspects: one face for modules, folders and functions."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_watermark import InvalidInput, Suspect
from hf_watermark.evidence import Access
from hf_watermark.serialization.folders import choose_weight_files
from hf_watermark.suspects import AccessError, BudgetExceeded


IMAGES = torch.randn(7, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_module_offers_weights_and_answers(make_resnet):
    model = make_resnet()
    suspect = Suspect.open(model)
    assert suspect.access == {Access.WEIGHTS, Access.LABELS} and suspect.name == "ResNetForImageClassification"
    assert suspect.shapes.keys() == suspect.weights.keys() == model.state_dict().keys()
    with torch.no_grad():
        expected = model(IMAGES).logits
    torch.testing.assert_close(suspect.ask(IMAGES), expected)
    assert torch.equal(suspect.labels(IMAGES, 10), expected.argmax(dim=1)) and suspect.queries == 14


def test_a_suspect_stays_itself(make_resnet):
    suspect = Suspect.open(make_resnet())
    assert Suspect.open(suspect) is suspect


def test_a_mirrored_suspect_answers_to_mirrored_images(make_resnet):
    suspect = Suspect.open(make_resnet())
    expected = suspect.ask(IMAGES.flip(-1))
    mirrored = suspect.within(1).mirrored()

    assert torch.equal(mirrored.ask(IMAGES), expected) and not torch.equal(mirrored.ask(IMAGES.flip(-1)), expected)
    assert mirrored.weights is suspect.weights and (mirrored.queries, suspect.queries) == (14, 7)
    with pytest.raises(AccessError, match="cannot be queried"):
        Suspect("weights only", weights={}).mirrored().ask(IMAGES)


def test_a_limit_belongs_to_the_check_and_counts_belong_to_the_suspect(make_resnet):
    suspect = Suspect.open(make_resnet())
    limited = suspect.within(len(IMAGES)).within(100)
    limited.ask(IMAGES)
    with pytest.raises(BudgetExceeded, match="0 are left"):
        limited.ask(IMAGES[:1])
    suspect.ask(IMAGES[:1])
    assert limited.queries == suspect.queries == len(IMAGES) + 1


def test_training_mode_comes_back_even_after_a_crash(make_resnet):
    model = make_resnet().train()
    suspect = Suspect.open(model)
    suspect.ask(IMAGES)
    assert model.training
    with pytest.raises(ValueError, match="channel"):
        suspect.ask(torch.zeros(2, 3, 16, 16))  # the model takes one channel
    assert model.training


def test_half_precision_modules_answer_in_float32():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)).to(torch.bfloat16)
    assert Suspect.open(model).ask(IMAGES).dtype == torch.float32


def test_a_folder_offers_answers_only_with_the_owners_backbone(make_resnet, tmp_path):
    from hf_watermark.backbones import backbone_record

    model = make_resnet()
    model.save_pretrained(tmp_path)
    bare, full = Suspect.open(tmp_path), Suspect.open(str(tmp_path), backbone_record(model))
    assert bare.access == {Access.WEIGHTS} and full.access == {Access.WEIGHTS, Access.LABELS}
    with torch.no_grad():
        torch.testing.assert_close(full.ask(IMAGES), model(IMAGES).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        AccessError, match="cannot be queried; give the model itself, or a key that holds its backbone"
    ):
        bare.ask(IMAGES)


def test_the_suspects_own_config_is_never_read(make_resnet, tmp_path):
    from hf_watermark.backbones import backbone_record

    model = make_resnet()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}, "nonsense"'
    )
    assert Suspect.open(tmp_path, backbone_record(model)).labels(IMAGES, 10).shape == (7,)


def test_a_function_is_asked_in_batches():
    sizes = []

    def endpoint(images):
        sizes.append(len(images))
        return images.flatten(1).argmax(dim=1)

    suspect = Suspect("endpoint", answer=endpoint, batch_size=3)
    assert len(suspect.labels(IMAGES, 256)) == 7 and sizes == [3, 3, 1] and suspect.queries == 7
    assert Suspect.open(endpoint).access == {Access.LABELS}
    for missing in ("weights", "shapes"):
        with pytest.raises(
            AccessError, match="offers no weights; it can only be checked by methods that read answers"
        ):
            getattr(suspect, missing)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (torch.arange(7), list(range(7))),
        (torch.arange(7).to(torch.uint8), list(range(7))),
        (np.arange(7), list(range(7))),
        (list(range(7)), list(range(7))),
        (torch.full((7,), -1), [-1] * 7),
        (torch.eye(10)[:7], list(range(7))),
        (torch.eye(10, dtype=torch.float16)[:7] * 30, list(range(7))),
        (torch.full((7, 10), float("nan")), [-1] * 7),
        (torch.full((7, 10), float("inf")), [-1] * 7),
    ],
)
def test_forms_of_an_answer(answer, expected):
    assert Suspect.open(lambda images: answer).labels(IMAGES, 10).tolist() == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.rand(7), "one float per image; return integer labels or probabilities"),
        (torch.rand(7, 9), "knows 9 classes, the key was made for 10"),
        (torch.zeros(6).long(), r"answered with shape \(6,\) to 7 images"),
        (torch.rand(7, 10, 1), r"answered with shape \(7, 10, 1\)"),
        (torch.tensor(3), r"answered with shape \(\) to 7 images"),
    ],
)
def test_unusable_answers_are_invalid_input(answer, message):
    with pytest.raises(InvalidInput, match=message):
        Suspect.open(lambda images: answer).labels(IMAGES, 10)


def test_what_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(InvalidInput, match="no such file or folder; give a folder with model.safetensors"):
        Suspect.open(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="cannot check a int; give a model, a folder"):
        Suspect.open(5)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InvalidInput, match="is pickled"):
        Suspect.open(tmp_path)


def test_requirements_name_the_method_and_the_offer(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(AccessError, match="method `m` needs labels of the suspect, .* offers weights"):
        Suspect.open(tmp_path).require(Access.LABELS, "m")
    with pytest.raises(AccessError, match="offers nothing"):
        Suspect("empty").require(Access.WEIGHTS, "m")


BESIDE = [
    "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "last.PT", "net.ckpt", "tf_model.h5", "flax_model.msgpack", "model.gguf", "model.onnx",
    "net.pkl", "net.tflite", "net.mlmodel", "saved_model.pb", "adapter_model.safetensors", "onnx/model.onnx", "sub/w.safetensors", "a/b/c/model.safetensors",
    "checkpoint-5/model.safetensors", "adapter/adapter_model.safetensors",
]  # fmt: skip
NO_MODELS = [
    "config.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "random_states_0.pkl", "README.md", "watermark/pool.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("read", ["model.safetensors", "decoy.safetensors", "model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("name", [*BESIDE, *NO_MODELS])
def test_what_else_may_be_the_model(name, read, tmp_path):
    """Wherever it lies and whatever it is stored in; what a trainer keeps beside a model is none."""
    save_file({"w": torch.zeros(2)}, tmp_path / read)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    here = Suspect.open(tmp_path).unread
    # A repository on the Hub says what lies in it as one list.
    there = choose_weight_files([read, name, "config.json"], dict, "me/model").left_out
    assert (name in here) == (name in BESIDE) == bool(here), here
    assert there == ((name,) if name in BESIDE else ())


def test_links_that_lead_nowhere(tmp_path):
    """One beside a good file hides nothing; one in its place is named."""
    save_file({"w": torch.zeros(2)}, tmp_path / "net.safetensors")
    for name in ("model.safetensors", "loop", "loop.safetensors"):
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "here").symlink_to(tmp_path)
    assert set(Suspect.open(tmp_path).shapes) == {"w"}
    (tmp_path / "net.safetensors").unlink()
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(
            InvalidInput, match="safetensors.* is a link that leads nowhere; put the file itself there"
        ):
            Suspect.open(path)


def test_what_is_no_suspect(tmp_path):
    class Odd(nn.Linear):
        def state_dict(self):
            return {1: torch.zeros(2)}

    for suspect, words in [
        (nn.Linear, "the class Linear as `suspect`; give an object of it"),
        (Odd(2, 2), "`state_dict` of the suspect names a tensor by a int"),
        ("x" * 5000, "no such file or folder"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            Suspect.open(suspect)
