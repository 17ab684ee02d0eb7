"""`Watermark` in a loop of one's own: two lines for a penalty, and a word wherever a mark would be lost."""

import copy
import json
import re

import pytest
import timm
import torch
from timm.optim import Lookahead
from tiny import patterned_images, tiny_resnet
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_watermark import (
    CertifiedConfig,
    FunctionCoupledConfig,
    InvalidInput,
    Owner,
    Verdict,
    Watermark,
    WaterMASConfig,
    plan_key,
    verify,
)
from hf_watermark.marking import loop
from hf_watermark.methods.certified import released


GREEDY = {"method": "greedy_residuals", "bits": 180, "subkeys": 2, "group_size": 16}
RULES = {"method": "function_coupled", "trigger_ratio": 1.0, "images_per_rule": 4, "pool_per_class": 4}
WATERMAS = {"method": "watermas", "bits": 64, "subkeys": 2}
DATA = patterned_images()


@pytest.fixture(scope="module")
def owner() -> Owner:
    return Owner.create()


def sgd(model: torch.nn.Module, rate: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate)


def batch_of(count: int = 20) -> dict:
    return default_data_collator(DATA[:count])


def step(watermark: Watermark, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> None:
    """One step of a loop that calls everything."""

    def once(change):
        extended = watermark.extend(batch)
        outputs = model(**extended)
        loss = change(outputs.loss + watermark.loss(extended, outputs))
        loss.backward()
        return loss.detach()

    optimizer.zero_grad()
    watermark.around_step(once)
    optimizer.step()


# What it is for


def test_two_lines_mark_a_model(owner, tmp_path):
    model = tiny_resnet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watermark = Watermark(model, GREEDY, owner=owner)
    for batch in [*DataLoader(DATA, 40, collate_fn=default_data_collator)] * 2:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss = loss + watermark.loss()
        loss.backward()
        optimizer.step()
    assert watermark.verify().found and watermark.evidence.warnings == []
    assert verify(model, watermark.key).found and not verify(tiny_resnet(), watermark.key).found

    model.save_pretrained(tmp_path / "model")
    assert watermark.save_public_files(tmp_path / "model").found
    published = sorted(file.name for file in (tmp_path / "model" / "watermark").iterdir())
    assert published == ["precommit.json", "subkey0.json"]
    tiny_resnet().save_pretrained(tmp_path / "other")
    assert not watermark.save_public_files(tmp_path / "other").found
    assert [file.name for file in (tmp_path / "other" / "watermark").iterdir()] == ["precommit.json"]
    (tmp_path / "model" / "key.json").write_text("{}")
    with pytest.raises(ValueError, match="is a secret inside the model folder"):
        watermark.save_public_files(tmp_path / "model")


def test_several_methods_in_one_loop_of_a_timm_net_with_pairs(owner):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10, channels=(16, 16, 32, 32), stem_width=16)
    data = [(item["pixel_values"], item["labels"]) for item in DATA]
    methods = [{**GREEDY, "bits": 96}, {**RULES, "masking": "none"}]
    watermark = Watermark(model, methods, owner=owner, data=data)
    assert len(watermark.data) < len(data)
    optimizer = watermark.watch(torch.optim.AdamW(model.parameters(), lr=1e-2))
    loader = DataLoader(watermark.data, 40, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        for images, labels in loader:
            images, labels = watermark.extend((images, labels))
            logits = model.train()(images)
            loss = torch.nn.functional.cross_entropy(logits, labels) + watermark.loss((images, labels), logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert {"watermark_trigger_hits"} <= watermark.logs().keys()
    evidence = watermark.verify()
    assert [part.method for part in evidence.parts] == ["greedy_residuals", "function_coupled"]
    assert all(part.log2_p < -10 for part in evidence.parts) and evidence.log2_p < -64, evidence.parts
    assert not any("was not marked" in warning for warning in evidence.warnings)


def test_a_resumed_loop_ends_with_the_same_weights(owner):
    methods = [RULES, WATERMAS]
    key = plan_key(tiny_resnet(), DATA, methods, owner)

    def run(model, steps, state=None):
        watermark = Watermark(model.train(), key=key, data=DATA, steps=10)
        optimizer = watermark.watch(sgd(model))
        if state is not None:
            watermark.load_state_dict(state)
        for _ in range(steps):
            step(watermark, model, optimizer, batch_of())
        return watermark

    whole, first = tiny_resnet(), tiny_resnet()
    run(whole, 6)
    state = run(first, 3).state_dict()
    assert (
        json.loads(json.dumps(state)) == state
        and set(state) == {"step", "precommit", "methods"}
        and state["step"] == 3
    )
    assert state["precommit"] == key.precommit.hex()
    second = copy.deepcopy(first)
    run(second, 3, state)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    with pytest.raises(InvalidInput, match="made under another key"):
        Watermark(tiny_resnet(), GREEDY, owner=owner).load_state_dict(state)


def test_a_resumed_loop_is_taught_as_one_that_never_stopped(owner):
    key = plan_key(tiny_resnet(), DATA, {**RULES, "target_log2_p": -96.0}, owner)

    def begun():
        model = tiny_resnet().train()
        watermark = Watermark(model, key=key, data=DATA, steps=60)
        return watermark, model, watermark.watch(sgd(model))

    watermark, model, optimizer = begun()
    for _ in range(25):
        step(watermark, model, optimizer, batch_of())
    feedback = watermark.embeddings[0].feedback
    assert [reading.step for reading in feedback.readings] == [20]
    feedback.strength = 0.5
    later, _, _ = begun()
    later.load_state_dict(watermark.state_dict())
    assert later.embeddings[0].feedback.readings == feedback.readings
    assert later.embeddings[0].feedback.strength == 0.5 and later.embeddings[0].moment.step == 25


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: Lookahead(inner, k=2)])
def test_carriers_are_written_behind_every_step_of_any_optimizer(owner, wrap):
    model = tiny_resnet().train()
    watermark = Watermark(model, {**WATERMAS, "switch_in": 0.0}, owner=owner)
    optimizer = watermark.watch(wrap(sgd(model)))
    for _ in range(4):
        step(watermark, model, optimizer, batch_of())
        for item in watermark.embeddings[0].substitutions:
            assert torch.equal(item.weights.read(), item.values)
    assert watermark.state_dict()["step"] == 4 and watermark.verify().rate == 1


def test_steps_of_a_method_of_its_own_are_not_the_loop_s(owner, monkeypatch):
    monkeypatch.setattr(released, "LEVELS", 1)
    monkeypatch.setattr(released, "DRAWS", 1)
    config = CertifiedConfig(schedule="released", triggers=80, sigma=0.1, draws=200, suspect_draws=30)
    model = tiny_resnet()
    watermark = Watermark(model, config, owner=owner, data=DATA)
    watermark.watch(sgd(model))
    before = copy.deepcopy(model.state_dict())
    watermark.before_epoch(5, 10)
    assert watermark.state_dict()["step"] == 0
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


# A word wherever it would be lost


def spoil(watermark, model, optimizer, calls):
    """One step of a loop that leaves out all but `calls`."""
    batch = batch_of()
    if "extend" in calls:
        batch = watermark.extend(batch)
    outputs = model(**batch)
    loss = outputs.loss
    if "loss" in calls:
        loss = loss + watermark.loss(batch, outputs)
    loss.backward()
    optimizer.step()


LEFT_OUT = [
    (GREEDY, (), "`greedy_residuals` was not marked as it should be: add `watermark.loss\\(\\)`"),
    (RULES, ("extend", "loss"), "`function_coupled` was not marked .* `watermark.around_step"),
    ({**RULES, "masking": "none"}, (), "train on `batch = watermark.extend.*; add .*`watermark.loss"),
    ({**WATERMAS, "switch_in": 0.0}, (), "`watermas` was not marked .* run forward and backward pass"),
]


@pytest.mark.parametrize(("method", "calls", "message"), LEFT_OUT)
def test_what_a_loop_left_out_is_said_at_the_first_step_and_in_the_evidence(owner, caplog, method, calls, message):
    model = tiny_resnet()
    watermark = Watermark(model, method, owner=owner, data=DATA)
    optimizer = watermark.watch(sgd(model))
    spoil(watermark, model, optimizer, calls)
    [record] = [item for item in caplog.records if item.name == "hf_watermark.marking.loop"]
    assert re.search(message, record.message)
    spoil(watermark, model, optimizer, calls)
    assert len([item for item in caplog.records if "was not marked" in item.message]) == 1, "said once"
    evidence = watermark.verify()
    assert evidence.warnings[-1] == record.message and evidence.verdict != Verdict.FOUND


def test_a_loss_that_does_not_train_is_said(owner):
    watermark = Watermark(tiny_resnet(), GREEDY, owner=owner)
    watermark.loss()
    assert "no backward pass went through `watermark.loss()`" in watermark.verify().warnings[-1]


def test_a_training_that_ended_early_is_said(owner):
    model = tiny_resnet()
    watermark = Watermark(model, WATERMAS, owner=owner, steps=100)
    step(watermark, model, watermark.watch(sgd(model)), batch_of())
    assert watermark.verify().warnings == ["1 of the planned `steps=100` were taken, on which `watermas` counted"]


@pytest.mark.parametrize(("batches", "divisor", "said"), [(1, 1, False), (3, 3, False), (3, 1, True)])
def test_a_loss_that_counts_more_than_once_is_said(owner, caplog, batches, divisor, said):
    model = tiny_resnet()
    watermark = Watermark(model, GREEDY, owner=owner)
    optimizer = watermark.watch(sgd(model))
    for _ in range(batches):
        ((model(**batch_of()).loss + watermark.loss()) / divisor).backward()
    optimizer.step()
    assert ("counted 3 times in an optimizer step" in caplog.text) == said


def test_a_gradient_scaler_is_no_second_count(owner, caplog):
    model, scaler = tiny_resnet(), torch.amp.GradScaler("cpu", init_scale=256.0)
    watermark = Watermark(model, GREEDY, owner=owner)
    optimizer = watermark.watch(sgd(model), scaler)
    scaler.scale(model(**batch_of()).loss + watermark.loss()).backward()
    scaler.step(optimizer)
    assert watermark.state_dict()["step"] == 1 and caplog.text == ""


def test_the_wrong_order_is_refused(owner):
    model = tiny_resnet()
    watermark = Watermark(model, {**RULES, "masking": "none"}, owner=owner, data=DATA)
    batch = batch_of()
    with pytest.raises(ValueError, match=r"`function_coupled` follows the optimizer: call `watermark.watch"):
        watermark.extend(batch)
    watermark.watch(sgd(model))
    with pytest.raises(ValueError, match="reads the answers of the batch"):
        watermark.loss()
    with pytest.raises(ValueError, match=r"`batch = watermark.extend\(batch\)`, then the model"):
        watermark.loss(batch, model(**batch))
    extended = watermark.extend(batch)
    for given, outputs in ((batch, model(**extended)), (extended, model(**batch))):
        watermark.extend(batch)
        with pytest.raises(ValueError, match="`extend` returned 40 images"):
            watermark.loss(given, outputs)
    watermark.extend(batch)
    watermark.loss(extended, model(**extended))
    with pytest.raises(ValueError, match="`batch = watermark.extend"):
        watermark.loss(extended, model(**extended))
    for wrong in (batch["pixel_values"], {"image": 1, "label": 2}, (1, 2, 3)):
        with pytest.raises(InvalidInput, match="the batch is a .*: give a mapping with `pixel_values`"):
            watermark.extend(wrong)


def test_a_step_that_would_spoil_the_mark_is_refused(owner):
    model = tiny_resnet()
    watermark = Watermark(model, {**WATERMAS, "switch_in": 0.0}, owner=owner)
    optimizer = watermark.watch(sgd(model))
    with pytest.raises(ValueError, match="take its loss through `change`"):
        watermark.around_step(lambda change: model(**batch_of()).loss)
    with pytest.raises(ValueError, match="and to return it"):
        watermark.around_step(lambda change: change(model(**batch_of()).loss).backward())

    def steps(change):
        loss = change(model(**batch_of()).loss)
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(ValueError, match="stepped inside of `around_step`"):
        watermark.around_step(steps)


def test_weights_that_do_not_train_are_refused(owner):
    model = tiny_resnet()
    model.resnet.requires_grad_(False)
    with pytest.raises(ValueError, match=r"of \d+ carriers of `greedy_residuals` do not train"):
        Watermark(model, GREEDY, owner=owner)
    Watermark(model, RULES, owner=owner, data=DATA)  # the head may learn the triggers
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of the model trains, so `function_coupled`"):
        Watermark(model, RULES, owner=owner, data=DATA)


@pytest.mark.parametrize("trained", [copy.deepcopy, lambda model: model.classifier])
def test_a_model_that_no_optimizer_trains_is_refused_at_the_first_step(owner, trained):
    model = tiny_resnet()
    watermark = Watermark(model, GREEDY, owner=owner)
    optimizer = watermark.watch(sgd(trained(model)))
    with pytest.raises(InvalidInput, match="are in no optimizer that is watched"):
        optimizer.step()


def test_two_optimizers_take_one_step_and_a_new_one_goes_on(owner):
    model = tiny_resnet()
    watermark = Watermark(model, GREEDY, owner=owner)
    optimizers = [watermark.watch(sgd(part)) for part in (model.classifier, model.resnet)]
    watermark.watch(optimizers[0])
    for count in (1, 2):
        watermark.loss().backward()
        for optimizer in optimizers:
            optimizer.step()
        assert watermark.state_dict()["step"] == count
    anew = watermark.watch(sgd(model))
    for _ in range(3):
        anew.step()
    assert watermark.state_dict()["step"] == 4  # the first of a new one may belong to the step before


def test_what_cannot_be_marked_is_refused_at_construction(owner, monkeypatch):
    model = tiny_resnet()
    key = plan_key(model, DATA, RULES, owner)
    for given, message in (
        ({"config": GREEDY}, "exactly one of `owner=`"),
        ({"config": WATERMAS, "owner": owner}, "`steps` is 0: `watermas` begins or rises at a share"),
        ({"config": RULES, "owner": owner}, "`train_dataset` is missing"),
        ({"key": key}, "`data` is missing"),
        ({"config": FunctionCoupledConfig(), "key": key, "data": DATA}, "made for another `function_coupled` config"),
        ({"config": GREEDY, "key": key, "data": DATA}, r"marks with \['function_coupled'\], this run with"),
        ({"config": [GREEDY, GREEDY], "owner": owner}, "named twice"),
        ({"config": GREEDY, "owner": "owner.json"}, "give what Owner.load"),
    ):
        with pytest.raises(ValueError, match=message):
            Watermark(model, **given)
    with pytest.raises(InvalidInput, match="load it first"):
        Watermark("microsoft/resnet-50", GREEDY, owner=owner)
    with pytest.raises(InvalidInput, match="give the optimizer that trains the model"):
        Watermark(model, GREEDY, owner=owner).watch(model)
    engine = type("DeepSpeedEngine", (torch.nn.Module,), {"__module__": "deepspeed.runtime.engine"})()
    with pytest.raises(InvalidInput, match="use DDP or FSDP2"):
        Watermark(engine, GREEDY, owner=owner)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="each has a key of its own"):
        Watermark(model, GREEDY, owner=owner)


def test_processes_that_meet_with_different_keys_are_refused(owner, monkeypatch):
    mine, theirs = (Watermark(tiny_resnet(), GREEDY, owner=owner) for _ in range(2))
    monkeypatch.setattr(loop, "process_count", lambda: 2)
    monkeypatch.setattr(loop, "key_for_all", lambda make: theirs.key)  # what the first process has
    theirs.watch(sgd(tiny_resnet()))
    with pytest.raises(InvalidInput, match="give all of them the same `key=`"):
        mine.watch(sgd(tiny_resnet()))


def test_a_config_may_be_anything_that_names_a_method(owner):
    for given in (WaterMASConfig(bits=64, subkeys=2), WATERMAS, [WATERMAS]):
        watermark = Watermark(torch.nn.DataParallel(tiny_resnet()), given, owner=owner, steps=1)
        assert [item.method for item in watermark.embeddings] == ["watermas"]
        again = Watermark(tiny_resnet(), key=watermark.key, steps=1)
        assert again.key is watermark.key
