"""Suspects that are called as a pipeline is: a picture in, names of classes and scores out."""

import io
from types import SimpleNamespace

import pytest
import torch
from inference_server import MEAN, STD, classify
from tiny import patterned_images, tiny_resnet
from transformers import ResNetForImageClassification, ViTImageProcessor, pipeline

from hf_watermark import InvalidInput, Suspect, Verdict, plan_key, verify, verify_sequentially
from hf_watermark.evidence import Access
from hf_watermark.keys import ModelContext
from hf_watermark.suspects import ImageClassifier


IMAGES = torch.zeros(3, 1, 16, 16)
CONTEXT = ModelContext(classes=("cat", "dog"), mean=(0.5,), std=(0.15,))
CAT = [{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}]


def png(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def named(model, top_k=10):
    """A bare function around a model, as a stranger writes it."""

    def ask(picture):
        scores = classify(model, png(picture)).topk(top_k)
        pairs = zip(scores.indices.tolist(), scores.values.tolist(), strict=True)
        return [{"label": model.config.id2label[place], "score": score} for place, score in pairs]

    return ask


def with_normalisation(key):
    """The key's context with the normalisation that a trainer with an image processor would have committed."""
    return ModelContext(key.context.backbone, key.context.classes, tuple(MEAN), tuple(STD), key.context.start)


@pytest.mark.parametrize("method", ["function_coupled", "usp"])
def test_a_mark_is_found_by_a_bare_function_of_pictures(marked_by, make_resnet, method):
    marked = marked_by(method)
    context = with_normalisation(marked.key)
    suspect = Suspect.open(named(marked.model), context=context)
    result = verify_sequentially(suspect, marked.key, budget=300, beacon=marked.key.beacon)
    assert result.evidence.found, result.evidence
    other = Suspect.open(named(make_resnet()), context=context)
    assert verify(other, marked.key, beacon=marked.key.beacon).verdict is not Verdict.FOUND


def test_verify_tells_pictures_from_tensors_by_itself(owner):
    rules = {"method": "function_coupled", "pool_per_class": 4, "images_per_rule": 4}
    processor = SimpleNamespace(image_mean=MEAN, image_std=STD)
    key = plan_key(tiny_resnet(), patterned_images(300), rules, owner, processor=processor)
    asked = []

    def by_pictures(picture):
        asked.append(picture)
        return named(tiny_resnet())(picture)

    evidence = verify(by_pictures, key)
    assert evidence.verdict is Verdict.NOT_FOUND and evidence.queries == len(asked) - 1 > 0
    assert isinstance(asked[0], torch.Tensor) and {picture.size for picture in asked[1:]} == {(16, 16)}


def test_a_pipeline_of_transformers_is_read_through_its_model(tmp_path, owner):
    model = tiny_resnet(num_channels=3)
    pipe = pipeline("image-classification", model=model, image_processor=ViTImageProcessor(size=16))
    suspect = Suspect.open(pipe)
    assert suspect.access == {Access.WEIGHTS, Access.LABELS} and isinstance(model, ResNetForImageClassification)
    assert suspect.name == "ImageClassificationPipeline of a ResNetForImageClassification"
    assert suspect.shapes.keys() == model.state_dict().keys()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(suspect.labels(images, 10), Suspect.open(model).labels(images, 10))


def test_a_function_around_a_pipeline_gets_the_pictures_that_the_pipeline_takes():
    model = tiny_resnet(num_channels=3)
    processor = ViTImageProcessor(size=16, image_mean=[0.5] * 3, image_std=[0.2] * 3, do_rescale=True)
    pipe = pipeline("image-classification", model=model, image_processor=processor, top_k=10)
    context = ModelContext.of(model.config.to_dict(), mean=[0.5] * 3, std=[0.2] * 3)
    suspect = Suspect.open(lambda picture: pipe(picture), context=context)
    images = 0.8 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images).logits.softmax(dim=1)
    torch.testing.assert_close(suspect.probabilities(images, 10).float(), expected, atol=0.02, rtol=0)
    in_lists = Suspect.open(lambda picture: pipe([picture]), context=context)
    torch.testing.assert_close(in_lists.probabilities(images, 10), suspect.probabilities(images, 10))


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        (CAT, [0.75, 0.25]),
        (CAT[::-1], [0.75, 0.25]),
        ([CAT], [0.75, 0.25]),
        (CAT[:1], [0.75, 0.0]),
        (CAT[0], [0.75, 0.0]),
        ([{"label": "LABEL_1", "score": 1}], [0.0, 1.0]),
        (tuple(CAT), [0.75, 0.25]),
    ],
)
def test_forms_of_an_answer(answer, rows):
    suspect = Suspect.open(lambda picture: answer, context=CONTEXT)
    assert suspect.probabilities(IMAGES, 2).tolist() == [rows] * 3 and suspect.queries == 3


def test_names_without_scores_are_labels_and_unknown_names_are_unusable():
    suspect = Suspect.open(lambda picture: [{"label": "dog"}], context=CONTEXT)
    assert suspect.labels(IMAGES, 2).tolist() == [1, 1, 1] and suspect.access == {Access.LABELS}
    for strange in ("Cat", "a fish", 5, None):
        suspect = Suspect.open(lambda picture, name=strange: [{"label": name, "score": 0.9}], context=CONTEXT)
        assert suspect.labels(IMAGES, 2).tolist() == [-1, -1, -1] and suspect.unusable == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([{"label": "a fish", "score": 0.9}], "the label 'a fish', which the key does not know"),
        ([*CAT, {"label": "a bird", "score": 0.0}], "the label 'a bird', which the key does not know"),
        ([{"label": "a fish"}], "the label 'a fish'"),
    ],
)
def test_unknown_labels_end_the_check_after_a_few_answers(answer, said):
    asked = []
    suspect = Suspect.open(lambda picture: asked.append(picture.size) or answer, context=CONTEXT)
    with pytest.raises(
        InvalidInput, match=rf"answered the first 5 images with {said}.*: the key knows 'cat', 'dog'. Noth"
    ):
        suspect.labels(torch.zeros(60, 1, 16, 16), 2)
    assert len(asked) == 1 + 5  # the tensors that it was tried with first


def test_one_known_label_among_the_first_answers_is_enough_to_go_on():
    answers = iter([[{"label": "a fish", "score": 1.0}]] * 4 + [CAT] + [[{"label": "a fish", "score": 1.0}]] * 5)
    suspect = Suspect.open(ImageClassifier(lambda picture: next(answers), CONTEXT.labels, CONTEXT.mean, CONTEXT.std))
    assert suspect.labels(torch.zeros(10, 1, 16, 16), 2).tolist() == [-1] * 4 + [0] + [-1] * 5


@pytest.mark.parametrize("answer", [None, "cat", 3, [], {}, {"confidences": []}, [{"score": 1.0}], ["cat"], [[]]])
def test_answers_of_another_form_give_no_verdict(answer):
    wrapped = ImageClassifier(lambda picture: answer, CONTEXT.labels, CONTEXT.mean, CONTEXT.std)
    with pytest.raises(InvalidInput, match='answers to a picture with a .*; return a list of {"label": name'):
        wrapped(IMAGES)
    with pytest.raises(InvalidInput, match="that are no numbers|answered with shape"):
        Suspect.open(lambda images: answer, context=CONTEXT).labels(IMAGES, 2)


def test_a_key_without_class_names_or_normalisation_says_what_is_missing(marked_by):
    marked = marked_by("function_coupled")
    assert not marked.key.context.mean
    with pytest.raises(InvalidInput, match=r"does not hold the owner's mean and std; wrap it: .*ImageClassifier\("):
        verify(lambda picture: CAT, marked.key)
    bare = Suspect.open(lambda picture: CAT, context=ModelContext())
    with pytest.raises(InvalidInput, match="does not hold the owner's labels nor mean and std"):
        bare.labels(IMAGES, 2)


class Pipeline:
    """What a stranger writes in the manner of transformers."""

    def __init__(self, processor=None, as_lists=False):
        self.image_processor, self.as_lists, self.pictures = processor, as_lists, []

    def __call__(self, inputs):
        pictures = inputs if isinstance(inputs, list) else [inputs]
        self.pictures += [(picture.convert("L").size, picture.mode) for picture in pictures]
        return [CAT for _ in pictures] if self.as_lists or isinstance(inputs, list) else CAT


@pytest.mark.parametrize("as_lists", [False, True])
def test_an_object_in_the_manner_of_a_pipeline_is_asked_pictures(as_lists):
    pipe = Pipeline(as_lists=as_lists)
    assert Suspect.open(pipe, context=CONTEXT).probabilities(IMAGES, 2).tolist() == [[0.75, 0.25]] * 3
    assert pipe.pictures == [((16, 16), "L")] * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_processor_of_an_object_stands_in_where_the_key_has_none(channels):
    pipe = Pipeline(ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3))
    suspect = Suspect.open(pipe, context=ModelContext(classes=CONTEXT.classes))
    assert suspect.labels(torch.zeros(2, channels, 16, 16), 2).tolist() == [0, 0]
    assert pipe.pictures == [((16, 16), "L" if channels == 1 else "RGB")] * 2


@pytest.mark.parametrize("error", [AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError, OSError])
def test_whatever_a_function_of_pictures_raises_at_tensors_it_is_asked_pictures(error):
    def of_pictures(picture):
        if isinstance(picture, torch.Tensor):
            raise error("no picture")
        return CAT

    assert Suspect.open(of_pictures, context=CONTEXT).labels(IMAGES, 2).tolist() == [0, 0, 0]


def test_a_function_that_takes_neither_is_one_sentence_with_both_errors():
    def broken(images):
        raise ValueError(f"no {type(images).__name__}, please\nsecond line")

    both = r"^broken cannot be called with a tensor of images \(ValueError: no Tensor, please\), nor does it work with a PIL image "
    both += r"\(ValueError: no PngImageFile, please\); .* wrap it: hf_watermark.suspects.ImageClassifier\("
    with pytest.raises(InvalidInput, match=both):
        Suspect.open(broken, context=CONTEXT).labels(IMAGES, 2)
    with pytest.raises(
        InvalidInput, match="no Tensor, please.*does not hold the owner's labels nor mean and std; wrap"
    ):
        Suspect.open(broken, context=ModelContext()).labels(IMAGES, 2)


def test_an_error_after_the_first_answer_stays_its_own():
    def failing_later(images, calls=[]):  # noqa: B006
        calls.append(images)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return torch.zeros(len(images), dtype=torch.long)

    suspect = Suspect.open(failing_later, context=CONTEXT)
    assert suspect.labels(IMAGES, 2).tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError, match="^out of memory$"):
        suspect.labels(IMAGES, 2)


def test_what_is_no_picture_is_not_sent_and_noted():
    asked = []
    suspect = Suspect.open(lambda picture: asked.append(picture.size) or CAT, context=CONTEXT)
    far = torch.full((2, 1, 16, 16), 50.0)
    assert suspect.labels(torch.cat([IMAGES, far]), 2).tolist() == [0, 0, 0, -1, -1]
    assert (suspect.queries, suspect.unusable) == (3, 2)
    assert "2 of 5 images of the key are no pictures under mean 0.5" in suspect.notes[0]
