"""The table of attacks: name, class and one line for people, without importing any of them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from ..serialization.words import known_names


if TYPE_CHECKING:
    from .base import Attack


class AttackEntry(NamedTuple):
    """Where the class of one attack is, and what it does."""

    module: str
    class_name: str
    help: str


ENTRIES = {
    "weight_noise": AttackEntry(
        "noise", "WeightNoise", "Add Gaussian noise to every weight tensor, relative to its own spread."
    ),
    "magnitude_prune": AttackEntry(
        "pruning",
        "MagnitudePrune",
        "Zero the smallest weights, globally or layer by layer, and optionally fine-tune the rest.",
    ),
    "uniform_quantize": AttackEntry(
        "quantization",
        "UniformQuantize",
        "Round convolution and linear weights to n bits, with one scale per output channel.",
    ),
    "int8_quantize": AttackEntry(
        "quantization",
        "Int8Quantize",
        "Store convolution and linear weights as int8 (torchao where installed) and read them back.",
    ),
    "cast_dtype": AttackEntry("quantization", "CastDtype", "Cast the model to bfloat16 or float16 and back."),
    "finetune": AttackEntry(
        "finetuning",
        "FineTune",
        "Fine-tune all layers or the last one, at a constant, cosine or REFIT-style decaying rate.",
    ),
    "reset_head": AttackEntry(
        "finetuning",
        "ResetHead",
        "Re-initialise the last layer, then retrain it alone (last) or the whole model (all).",
    ),
    "transfer": AttackEntry("finetuning", "Transfer", "Replace the head and train the model on another label set."),
    "distill": AttackEntry(
        "distillation",
        "Distill",
        "Train a fresh student, of the same or another architecture, on the model's answers.",
    ),
    "reestimate_batchnorm": AttackEntry(
        "batchnorm", "ReestimateBatchNorm", "Re-estimate the running statistics of BatchNorm on other data."
    ),
    "flip_batchnorm_signs": AttackEntry(
        "batchnorm",
        "FlipBatchNormSigns",
        "Flip signs of convolution rows and undo it in BatchNorm: no answer changes.",
    ),
    "fold_batchnorm": AttackEntry(
        "symmetric", "FoldBatchNorm", "Write normalisations into the neighbouring layers: no answer changes."
    ),
    "permute": AttackEntry("symmetric", "Permute", "Reorder channels and heads: no answer changes."),
    "rescale": AttackEntry(
        "symmetric",
        "Rescale",
        "Multiply channels where they are written and divide where they are read: no answer changes.",
    ),
    "rotate_residual": AttackEntry(
        "symmetric", "RotateResidual", "Rotate the residual stream of a transformer: no answer changes."
    ),
    "mix_heads": AttackEntry("symmetric", "MixHeads", "Mix the channels of every attention head: no answer changes."),
    "mix_bottlenecks": AttackEntry(
        "symmetric", "MixBottlenecks", "Mix the channels of linear bottlenecks: no answer changes."
    ),
    "dummy_neurons": AttackEntry(
        "width",
        "DummyNeurons",
        "Add units that nothing reads, that cancel, or that share a unit's work: no answer changes.",
    ),
    "structured_prune": AttackEntry("width", "StructuredPrune", "Take the weakest units out of every hidden layer."),
    "int4_quantize": AttackEntry(
        "quantization",
        "Int4Quantize",
        "Store convolution and linear weights as 4-bit integers per group (torchao) and read them back.",
    ),
    "onnx_round_trip": AttackEntry(
        "onnx_export", "OnnxRoundTrip", "Export to ONNX (BatchNorm folded, optionally int8) and read the tensors back."
    ),
    "preprocess_input": AttackEntry(
        "preprocessing",
        "PreprocessInput",
        "Serve the model behind an input filter: JPEG, smoothing, rotation, quantisation, noise, mirror.",
    ),
    "fine_prune": AttackEntry(
        "fine_pruning",
        "FinePrune",
        "Silence the units of the last layers that clean images leave idle, then fine-tune.",
    ),
    "adversarial_neuron_prune": AttackEntry(
        "fine_pruning", "AdversarialNeuronPrune", "Silence units whose slight perturbation spoils the answers (ANP)."
    ),
    "trigger_unlearn": AttackEntry(
        "trigger_inversion",
        "TriggerUnlearn",
        "Invert a trigger per class (Neural Cleanse), then unlearn it, prune or launder its units.",
    ),
    "attention_distill": AttackEntry(
        "attention", "AttentionDistill", "Fine-tune a copy, then train the model on the copy's attention maps (NAD)."
    ),
    "adversarial_finetune": AttackEntry(
        "adversarial", "AdversarialFineTune", "Fine-tune on adversarial examples (projected gradient descent)."
    ),
    "occlude_finetune": AttackEntry(
        "adversarial", "OccludeFineTune", "Fine-tune on images with a random rectangle of noise."
    ),
    "regularize": AttackEntry("regularization", "Regularize", "Train under strong weight decay, then fine-tune back."),
    "weight_shift": AttackEntry(
        "regularization", "WeightShift", "Subtract the mean filter from the filters of each layer, then fine-tune."
    ),
    "soft_label_finetune": AttackEntry(
        "regularization",
        "SoftLabelFineTune",
        "Fine-tune on the model's own top answers, smoothed or noised; needs no labels.",
    ),
    "lora": AttackEntry("lora", "LoraFineTune", "Fine-tune low-rank updates of the weights with peft and merge them."),
    "merge": AttackEntry(
        "merging", "Merge", "Interpolate the weights with another model of the architecture, such as the public base."
    ),
    "merge_sibling": AttackEntry(
        "merging", "MergeSibling", "Fine-tune a copy and average its weights with the model's."
    ),
    "knockoff": AttackEntry(
        "extraction", "Knockoff", "Buy answers about a set of images once and train a fresh student on them."
    ),
    "data_free_extract": AttackEntry(
        "extraction", "DataFreeExtract", "Extract the model with the images of a generator, without data."
    ),
}


class AttackTable(Mapping[str, "type[Attack]"]):
    """The attacks by name; each is imported when it is looked up."""

    def __getitem__(self, name: str) -> "type[Attack]":
        entry = ENTRIES[name]
        return getattr(import_module(f".{entry.module}", __package__), entry.class_name)

    def __contains__(self, name: object) -> bool:
        return name in ENTRIES

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


ATTACKS = AttackTable()


def make_attack(name: str, **options: Any) -> "Attack":
    """
    Args:
        name (`str`):
            A key of `ATTACKS`.
        options:
            Fields of that attack.

    Raises:
        `ValueError`: if there is no such attack, or an option is unknown or out of range.
    """
    if name not in ATTACKS:
        raise ValueError(f"There is no attack {name!r}: {known_names(name, ATTACKS)}.")
    known = [field.name for field in fields(ATTACKS[name]) if field.init]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"The attack {name!r} has no option {unknown[0]!r}: {known_names(unknown[0], known)}.")
    return ATTACKS[name](**options)
