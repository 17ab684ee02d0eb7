"""Live models in wrappers, with unusual outputs, quantised, or without values."""

import copy

import pytest
import torch
from disguises import IMAGES
from torch import nn

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, InvalidInput, Owner, Suspect, verify


class Returning(nn.Module):
    """A model inside of another one, with an output of one's own."""

    def __init__(self, model, form):
        super().__init__()
        self.net, self.form = model, form

    def forward(self, images):
        return self.form(self.net(images).logits)


FORMS = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits,),
    "loss first": lambda logits: (torch.tensor(0.0), logits),
    "dict": lambda logits: {"logits": logits},
    "dict of one": lambda logits: {"out": logits},
}
WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "inside of another module": lambda model: Returning(model, FORMS["dict"]),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_looked_through(name, resnet):
    suspect = Suspect.open(WRAPPERS[name](resnet.model))
    assert verify(suspect, resnet.key, beacon=resnet.beacon).found
    with torch.no_grad():
        torch.testing.assert_close(suspect.ask(IMAGES), resnet.model(IMAGES).logits)


@pytest.mark.parametrize("name", FORMS)
def test_answers_in_any_form(name, resnet):
    suspect = Suspect.open(Returning(resnet.model, FORMS[name]))
    with torch.no_grad():
        torch.testing.assert_close(suspect.ask(IMAGES), resnet.model(IMAGES).logits)


def test_an_output_without_logits_says_what_to_do(resnet):
    suspect = Suspect.open(Returning(resnet.model, lambda logits: {"a": logits, "b": logits}))
    with pytest.raises(InvalidInput, match="returns a dict without `logits`; wrap it in a function"):
        suspect.ask(IMAGES)


def test_a_model_without_parameters_answers():
    assert Suspect.open(nn.Flatten()).ask(IMAGES).shape == (16, 1024)


def test_quantised_tensors_say_what_they_are(vit):
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(vit.model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    suspect = Suspect.open(model)
    assert verify(suspect, vit.key).found
    assert suspect.ask(IMAGES).shape == (16, 10)


def test_dynamic_quantisation_of_torch_itself_is_named(vit):
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(vit.model), {nn.Linear})
    evidence = verify(model, vit.key)
    assert str(evidence.verdict) == "inconclusive" and "no tensors of the key's names" in evidence.reason


def test_a_model_without_values_is_named(resnet):
    evidence = verify(copy.deepcopy(resnet.model).to("meta"), resnet.key, beacon=resnet.beacon)
    assert str(evidence.verdict) == "inconclusive" and "has no values here (meta device)" in evidence.reason


class HandMade(nn.Module):
    """Layers that no library names."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList([nn.Conv2d(1, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 2, 1)])
        self.head = nn.Linear(64, 10)

    def forward(self, pixel_values):
        for layer in self.trunk:
            pixel_values = layer(pixel_values).relu()
        return self.head(pixel_values.mean((2, 3)))


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory):
    from tiny import training_arguments

    torch.manual_seed(0)
    model = HandMade()
    config = GreedyResidualsConfig(layers=["trunk.1.weight"], bits=256, group_size=32, subkeys=2, strength=1.0)
    arguments = training_arguments(tmp_path_factory.mktemp("hand made"))
    trainer = GreedyResidualsTrainer(model=model, args=arguments, watermark=config, owner=Owner.create())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    return model, trainer.key


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "_orig_mod.module.", "a.b.c.", "state_dict.ema."])
def test_layers_named_by_hand_are_found_under_any_prefix(prefix, hand_made):
    model, key = hand_made
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    decoy = {"other.1.weight": torch.randn(64, 64, 3, 3), "trunk.1.weight_v": torch.randn(3)}
    for tensors in (state, state | decoy):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        assert verify(Suspect("tensors", tensors, shapes), key).found


def test_a_compiled_model_with_layers_named_by_hand(hand_made):
    model, key = hand_made
    assert verify(torch.compile(model), key).found and verify(nn.DataParallel(model), key).found
