"""Batteries: the attacks of a robustness table, with budgets that follow the recipe of the model under attack."""

from typing import Any, Literal

from transformers import PreTrainedModel

from .adversarial import AdversarialFineTune, OccludeFineTune
from .attention import AttentionDistill
from .base import Attack
from .batchnorm import FlipBatchNormSigns, ReestimateBatchNorm
from .distillation import Distill
from .extraction import DataFreeExtract, Knockoff
from .fine_pruning import AdversarialNeuronPrune, FinePrune
from .finetuning import FineTune, ResetHead, Transfer
from .lora import LoraFineTune
from .merging import Merge, MergeSibling
from .noise import WeightNoise
from .onnx_export import OnnxRoundTrip
from .preprocessing import PreprocessInput
from .pruning import MagnitudePrune
from .quantization import CastDtype, Int4Quantize, Int8Quantize, UniformQuantize
from .regularization import Regularize, SoftLabelFineTune, WeightShift
from .stacking import Stack
from .symmetric import FoldBatchNorm, MixBottlenecks, MixHeads, Permute, Rescale, RotateResidual
from .trigger_inversion import TriggerUnlearn
from .width import DummyNeurons, StructuredPrune


def standard_battery(
    learning_rate: float,
    epochs: float = 3,
    distill_epochs: float = 30,
    batch_size: int = 128,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Attack]:
    """
    The attacks that every robustness table must show, by label. None needs the extra `attacks`. The two BatchNorm attacks
    raise [`NotApplicableError`] for a model without BatchNorm.

    Args:
        learning_rate (`float`):
            The rate that the model under attack was trained with: the top of the fine-tuning grid. Only
            `finetune_refit` goes above it, three times, and decays.
        epochs (`float`, *optional*, defaults to 3):
            Epochs of each fine-tuning attack.
        distill_epochs (`float`, *optional*, defaults to 30):
            Epochs of each distillation, which starts from nothing and so needs more.
        batch_size (`int`, *optional*, defaults to 128):
            Examples per step and process.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            The optimizer that `learning_rate` belongs to: `"sgd"` (momentum 0.9) or `"adamw"`.
        seed (`int`, *optional*, defaults to 0):
            Seed of every attack.
        progress (`bool`, *optional*, defaults to `False`):
            Show progress bars of training.
    """
    run: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    tune: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "optimizer": optimizer, **run}
    distill: dict[str, Any] = {"epochs": distill_epochs, **run}
    low = {**tune, "learning_rate": learning_rate / 10}
    pruned_tune = {"finetune_epochs": epochs, "learning_rate": learning_rate / 10, "optimizer": optimizer, **run}
    return {
        "noise_0.1": WeightNoise(0.1, seed=seed),
        "noise_0.3": WeightNoise(0.3, seed=seed),
        "prune_global_50": MagnitudePrune(0.5),
        "prune_global_90": MagnitudePrune(0.9),
        "prune_layer_50": MagnitudePrune(0.5, scope="layer"),
        "prune_layer_90": MagnitudePrune(0.9, scope="layer"),
        "prune_global_90_finetune": MagnitudePrune(0.9, **pruned_tune),
        "prune_layer_90_finetune": MagnitudePrune(0.9, scope="layer", **pruned_tune),
        "quantize_8bit": UniformQuantize(8),
        "quantize_4bit": UniformQuantize(4),
        "quantize_3bit": UniformQuantize(3),
        "quantize_2bit": UniformQuantize(2),
        "int8": Int8Quantize(),
        "cast_bfloat16": CastDtype("bfloat16"),
        "cast_float16": CastDtype("float16"),
        "finetune_lr_0.01x": FineTune(**{**tune, "learning_rate": learning_rate / 100}),
        "finetune_lr_0.1x": FineTune(**low),
        "finetune_lr_1x": FineTune(**tune),
        "finetune_refit_3x": FineTune(**{**tune, "learning_rate": 3 * learning_rate}, schedule="refit"),
        "finetune_last_layer": FineTune(**tune, scope="last"),
        "reset_head_last": ResetHead(**tune, scope="last"),
        "reset_head_all": ResetHead(**tune, scope="all"),
        "transfer": Transfer(**tune),
        "distill_soft_same": Distill(mode="soft", student="same", **distill),
        "distill_soft_other": Distill(mode="soft", student="other", **distill),
        "distill_hard_same": Distill(mode="hard", student="same", **distill),
        "distill_hard_other": Distill(mode="hard", student="other", **distill),
        "reestimate_batchnorm": ReestimateBatchNorm(batch_size=batch_size, seed=seed),
        "flip_batchnorm_signs": FlipBatchNormSigns(seed=seed),
        "input_jpeg_65": PreprocessInput("jpeg", 65),
        "input_gaussian_0.6": PreprocessInput("gaussian", 0.6),
        "fine_prune_60": FinePrune(**low, amount=0.6),
        "weight_shift_1.5": WeightShift(**low, shift=1.5),
        "merge_sibling_50": MergeSibling(**tune, weight=0.5),
    }


def full_battery(
    learning_rate: float,
    epochs: float = 3,
    distill_epochs: float = 30,
    batch_size: int = 128,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    seed: int = 0,
    progress: bool = False,
    search_steps: int = 500,
    queries: int = 200_000,
    base: PreTrainedModel | str | None = None,
    other_images: Any = None,
) -> dict[str, Attack]:
    """
    Every attack of this package, by label: [`standard_battery`], and attacks that cost more or need the extra `attacks`.

    Args:
        learning_rate, epochs, distill_epochs, batch_size, optimizer, seed, progress:
            As in [`standard_battery`].
        search_steps (`int`, *optional*, defaults to 500):
            Steps of attacks that search something other than weights: masks of neurons, and a trigger per label.
        queries (`int`, *optional*, defaults to 200000):
            Answers that data-free extraction may buy.
        base ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            The public model that the one under attack was fine-tuned from. Without it there is no row `merge_base`.
        other_images ([`ImageDataset`], *optional*):
            Images of another origin to buy answers about. Without it the rows `knockoff_other_*` are left out.
    """
    run: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    tune: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "optimizer": optimizer, **run}
    low = {**tune, "learning_rate": learning_rate / 10}
    buy: dict[str, Any] = {"epochs": distill_epochs, **run}
    search = {**low, "inversion_steps": search_steps}
    merges = {f"merge_base_{100 * share:.0f}": Merge(base, share) for share in (0.3, 0.5, 0.7) if base is not None}
    knockoffs = {
        f"knockoff_other_{answers}": Knockoff(answers=answers, images=other_images, **buy)  # type: ignore[arg-type]
        for answers in ("probabilities", "labels")
        if other_images is not None
    }
    filters: list[tuple[Any, float | None]] = [
        *[("jpeg", 95), ("jpeg", 45), ("mean", 3), ("median", 3), ("gaussian", 1.0), ("rotate", 10), ("rotate", 30)],
        *[("resize", 0.5), ("quantize", 16), ("quantize", 4), ("noise", 0.03), ("noise", 0.1), ("flip", None)],
    ]
    return {
        **standard_battery(learning_rate, epochs, distill_epochs, batch_size, optimizer, seed, progress),
        "fold_batchnorm": FoldBatchNorm(),
        "permute": Permute(seed=seed),
        "rescale": Rescale(seed=seed),
        "rotate_residual": RotateResidual(seed=seed),
        "mix_heads": MixHeads(seed=seed),
        "mix_bottlenecks": MixBottlenecks(seed=seed),
        "permute_finetune": Stack((Permute(seed=seed), FineTune(**low))),
        **{f"dummy_{kind}": DummyNeurons(kind, seed=seed) for kind in ("zero", "clique", "split")},  # type: ignore[arg-type]
        "structured_prune_20": StructuredPrune(0.2),
        "int4_group_32": Int4Quantize(32),
        "onnx": OnnxRoundTrip(),
        "onnx_int8": OnnxRoundTrip("int8"),
        **{
            f"input_{kind}" + (f"_{amount:g}" if amount else ""): PreprocessInput(kind, amount, seed=seed)
            for kind, amount in filters
        },
        "neuron_prune_anp": AdversarialNeuronPrune(steps=search_steps, batch_size=batch_size, seed=seed),
        "neuron_prune_anp_finetune": Stack(
            (AdversarialNeuronPrune(steps=search_steps, batch_size=batch_size, seed=seed), FineTune(**low))
        ),
        "fine_prune_90": FinePrune(**low, amount=0.9),
        "trigger_unlearn": TriggerUnlearn(**search),
        "trigger_unlearn_outlier": TriggerUnlearn(**search, targets="outlier"),
        "trigger_prune": TriggerUnlearn(**search, action="prune"),
        "trigger_launder": TriggerUnlearn(**search, action="launder", amount=0.3),
        "attention_distill_nad": AttentionDistill(**low, teacher_epochs=epochs),
        "adversarial_finetune": AdversarialFineTune(**low),
        "occlude_finetune": OccludeFineTune(**low),
        "regularize": Regularize(**low, decay_epochs=epochs),
        "weight_shift_2.5": WeightShift(**low, shift=2.5),
        "soft_label_smooth": SoftLabelFineTune(**low),
        "soft_label_noise": SoftLabelFineTune(**low, smoothing=0.8, spread="shuffled"),
        "lora_8": LoraFineTune(**tune, rank=8),
        **merges,
        "merge_sibling_80": MergeSibling(**tune, weight=0.8),
        "knockoff_probabilities": Knockoff(**buy),
        "knockoff_labels": Knockoff(**buy, answers="labels"),
        "knockoff_smooth": Knockoff(**buy, views=4, student="other"),
        **knockoffs,
        "data_free": DataFreeExtract(queries=queries, **run),
        "stack_shift_smooth_prune": Stack(
            (
                WeightShift(**low),
                SoftLabelFineTune(**low),
                FinePrune(**low),
                PreprocessInput("gaussian", 0.6, seed=seed),
            )
        ),
    }
