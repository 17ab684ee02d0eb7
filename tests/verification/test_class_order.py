"""Marks in answers of suspects that number their classes otherwise."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from hf_watermark import Suspect, Verdict, verify, verify_sequentially
from hf_watermark.suspects.answers import in_order
from hf_watermark.verification.classes import by_names


METHODS = ["certified", "function_coupled", "usp"]
ORDER = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
HEAD = ("classifier.1.weight", "classifier.1.bias")


def head_changed(marked, change):
    state = {name: tensor.clone() for name, tensor in marked.model.state_dict().items()}
    return state | {name: change(state[name]).contiguous() for name in HEAD}


def written(state, folder, names=None):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    if names is not None:
        (folder / "config.json").write_text(json.dumps({"id2label": {str(n): name for n, name in enumerate(names)}}))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_classes_in_another_order(method, marked_by, tmp_path):
    marked = marked_by(method)
    plain = verify(marked.model, marked.key, beacon=marked.key.beacon)
    folder = written(head_changed(marked, lambda rows: rows[ORDER]), tmp_path / "suspect")
    evidence = verify(folder, marked.key, beacon=marked.key.beacon)
    assert evidence.verdict is plain.verdict, evidence.reason
    assert evidence.looks == 2 and evidence.details["class_order"] == ORDER.argsort().tolist()
    assert any("the suspect numbers its classes otherwise" in warning for warning in evidence.warnings)


def test_asked_in_steps_too(marked_by):
    marked = marked_by("function_coupled")
    other = copy.deepcopy(marked.model)
    other.load_state_dict(head_changed(marked, lambda rows: rows[ORDER]))
    found = verify_sequentially(other, marked.key, beacon=marked.key.beacon).evidence
    assert found.found and found.looks == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_keys_own_order_costs_no_look(method, marked_by):
    marked = marked_by(method)
    assert verify(marked.model, marked.key, beacon=marked.key.beacon).looks == 1


def test_further_classes(marked_by, tmp_path):
    marked = marked_by("function_coupled")
    generator = torch.Generator().manual_seed(0)

    def grown(rows):
        return torch.cat([torch.randn(2, *rows.shape[1:], generator=generator) * 1e-3 - float(rows.ndim == 1), rows])

    evidence = verify(written(head_changed(marked, grown), tmp_path / "suspect"), marked.key, beacon=marked.key.beacon)
    assert evidence.found, evidence.reason
    assert evidence.details["class_order"] == list(range(2, 12))


def test_classes_that_are_left_out_are_named(marked_by, tmp_path):
    marked = marked_by("function_coupled")
    folder = written(head_changed(marked, lambda rows: rows[:9]), tmp_path / "suspect")
    evidence = verify(folder, marked.key, beacon=marked.key.beacon)
    assert evidence.matches > 0.5 * evidence.trials
    assert any("1 of the key's classes are missing" in warning for warning in evidence.warnings)


def test_false_names_hide_nothing(marked_by, tmp_path):
    """Whoever writes names that are wrong is read by what the model answers."""
    marked = marked_by("function_coupled")
    own = marked.key.context.classes
    wrong = [own[number] for number in ORDER] if own else None
    folder = written(dict(marked.model.state_dict()), tmp_path / "suspect", wrong)
    assert verify(folder, marked.key, beacon=marked.key.beacon).found


def test_an_unmarked_model_is_not_found_in_any_order(marked_by, make_resnet, tmp_path):
    marked = marked_by("function_coupled")
    state = make_resnet().state_dict()
    evidence = verify(written(state, tmp_path / "suspect"), marked.key, beacon=marked.key.beacon)
    assert evidence.verdict in (Verdict.NOT_FOUND, Verdict.INCONCLUSIVE) and evidence.log2_p > -20


def test_names_of_files_and_models(tmp_path, make_resnet):
    model = make_resnet()
    model.config.id2label = {number: f"digit {number}" for number in range(10)}
    model.save_pretrained(tmp_path)
    names = tuple(f"digit {number}" for number in range(10))
    assert Suspect.open(tmp_path).class_names == names and Suspect.open(model).class_names == names
    (tmp_path / "config.json").write_text("{")
    assert Suspect.open(tmp_path).class_names == ()


def test_names_tell_an_order_only_where_they_say_something():
    assert by_names(["a", "b", "c"], ["c", "a", "b"]).places == (1, 2, 0)
    assert by_names(["a", "b", "c"], ["b", "a"]).places == (1, 0, -1)
    assert by_names(["a", "b"], ["a", "b"]) is None
    assert by_names(["LABEL_0", "LABEL_1"], ["LABEL_1", "LABEL_0"]) is not None
    assert by_names(["a", "b", "c"], ["x", "y", "c"]) is None
    assert by_names([], ["a", "b"]) is None


def test_answers_in_another_order():
    labels = torch.tensor([0, 1, 2, -1])
    assert in_order(labels, [2, 0, -1], False).tolist() == [1, -1, 0, -1]
    scores = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    torch.testing.assert_close(
        in_order(scores, [1, 0], False), torch.tensor([[0.7, 0.2], [torch.nan] * 2]), equal_nan=True
    )
    assert in_order(scores, [2, 1, 0, -1], True).softmax(dim=1)[:, 3].tolist() == [0.0, 0.0]
