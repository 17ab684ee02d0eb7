"""Embeds triggers that hold under parameter noise."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.nn import functional

from ...backbones import FoldedNet, live_weights
from ...keys import Claim, SubKey, pool_digest
from ...serialization import InvalidInput
from ...training.trainer import Plan, WatermarkTrainer
from ...training.triggers import collect_images, photograph_crops, spread_classes, undisturbed_random_state
from .certificate import RADII, Certificate, certify
from .config import CertifiedConfig
from .noise import add_noise, noise_scales
from .released import ReleasedSchedule
from .verifier import CertifiedVerifier, refuse_too_few


class CertifiedTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that teaches the model key-drawn triggers under Gaussian parameter noise: every step adds one pass over
    some triggers with noisy folded weights, at a noise level drawn anew each time and rising in the first part of the training.

    Noisy passes use the BatchNorm statistics as constants and never update them. Source images of the triggers are taken out of
    the training data.
    """

    method: ClassVar[str] = "certified"
    config_class = CertifiedConfig
    verifier_class = CertifiedVerifier

    def plan(self, config: CertifiedConfig, secret: bytes) -> Plan:
        model: Any = self._bare_model()
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing; the triggers of certified watermarks are made from it")
        classes = int(model.config.num_labels)
        refuse_too_few(config, classes)
        wanted = config.triggers * config.subkeys
        order = SubKey(0, 0, secret)
        sources = spread_classes(classes, wanted)
        per_class = -(-wanted // len(sources)) if config.family != "unrelated" else 1
        images, labels, rows = collect_images(self.train_dataset, self.data_collator, sources, per_class, order)
        low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
        if config.family == "unrelated":
            crops = photograph_crops(order, wanted, images.shape[1:])
            images = low[:, None, None] + (high - low)[:, None, None] * crops
            labels, rows = torch.full((wanted,), -1), rows[:0]
        else:
            # One image of every class before a second one of any, so that every sub-key's share holds all classes.
            dealt = torch.arange(len(images)).reshape(len(sources), per_class).T.flatten()[:wanted]
            images, labels, rows = images[dealt], labels[dealt], rows[dealt]
        tensors = {"images": images, "labels": labels, "rows": rows, "range": torch.stack([low, high])}
        kinds = {"images": torch.float16, "labels": torch.int64, "rows": torch.int32, "range": torch.float16}
        pool = {f"{CertifiedTrainer.method}.{name}": tensor.to(kinds[name]) for name, tensor in tensors.items()}
        net = FoldedNet(model, images[:2], fold=config.moves == "all")
        scales = noise_scales(net.coordinates(model), config.noise)
        layout = {"classes": classes, "scales": scales, "pool_sha256": pool_digest(pool)}
        return Plan(layout, config.subkeys, pool)

    def attach(self, claim: Claim) -> None:
        verifier = CertifiedVerifier(claim)
        self._certified_claim = claim
        self._spread = verifier.spread()
        self._triggers = torch.cat([verifier.triggers(subkey) for subkey in claim.subkeys])
        self._trigger_labels = torch.cat([torch.from_numpy(verifier.labels(subkey)) for subkey in claim.subkeys])
        self._noise_draws = hashlib.sha256(b"hfwm/v2/noise" + claim.subkeys[0].secret).digest()
        self._right, self._shown = torch.zeros(()), 0
        model: Any = self._bare_model()
        if int(model.config.num_labels) != verifier.classes:
            raise InvalidInput(
                f"the key was made for {verifier.classes} classes, this model has {model.config.num_labels}; make a fresh key"
            )
        if self.train_dataset is not None:
            self._refuse_other_size()
        self._net = verifier.folded(model)
        config = self.config_of(CertifiedConfig)
        if config.schedule == "released":
            self.add_callback(ReleasedSchedule(self, self._triggers, self._trigger_labels, config.sigma))

    def _refuse_other_size(self) -> None:
        with undisturbed_random_state():
            sample = self.data_collator([self.train_dataset[0]])["pixel_values"]  # type: ignore[index]
        if sample.shape[1:] != self._triggers.shape[1:]:
            theirs, ours = (" x ".join(map(str, shape)) for shape in (self._triggers.shape[1:], sample.shape[1:]))
            raise InvalidInput(f"the key's triggers are {theirs}, the training images are {ours}; make a fresh key")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return result
        config, batch = self.config_of(CertifiedConfig), len(inputs["labels"])
        if config.schedule == "amortised":
            rise = min(1.0, self.state.global_step / max(1.0, config.warmup * self.state.max_steps))
            loss = config.strength * self._noisy_loss(config.trigger_ratio * batch, config.overshoot * rise)
        else:
            # The released clean epoch runs over data and triggers together, so a trigger weighs as much as an image.
            share = len(self._triggers) / len(self.train_dataset)  # type: ignore[arg-type]
            loss = share * self._noisy_loss(max(8, share * batch), 0.0)
        if return_outputs:
            task, outputs = result
            return task + loss.to(task.device), outputs
        return result + loss.to(result.device)

    def _noisy_loss(self, count: float, largest: float) -> torch.Tensor:
        """Cross-entropy of `count` triggers under one noise draw of a level up to `largest` (in sigma), both new in each step and process."""
        generator = torch.Generator().manual_seed(
            self.step_seed(self._noise_draws, b"triggers", self.accelerator.process_index)
        )
        chosen = torch.randperm(len(self._triggers), generator=generator)[: max(1, round(count))]
        level = float(torch.rand((), generator=generator)) * largest
        seed = int(torch.randint(2**62, (), generator=generator))
        bare = self._bare_model()
        weights = self._net.coordinates(bare, live_weights(bare))
        noisy = add_noise(weights, {name: level * spread for name, spread in self._spread.items()}, seed)
        device = next(iter(weights.values())).device
        labels = self._trigger_labels[chosen].to(device)
        logits = self._net(noisy, self._triggers[chosen].to(device))
        self._right = self._right.to(device) + (logits.detach().argmax(dim=1) == labels).sum()
        self._shown += len(chosen)
        return functional.cross_entropy(logits.float(), labels)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._shown:
            logs["watermark_noisy_trigger_hits"] = round(float(self._right) / self._shown, 4)
            self._right, self._shown = torch.zeros(()), 0
        super().log(logs, *args, **kwargs)

    def certify(
        self,
        radii: Sequence[float] = RADII,
        confidence: float = 0.99,
        draws: int | None = None,
        at_least: float | None = None,
        attacked: dict[str, nn.Module] | None = None,
    ) -> Certificate:
        """
        The certificate of the model as it is now; see [`certify`]. The draws are split over all processes, and every process gets the
        same certificate.
        """
        self.sync_buffers()
        share = self._share if self.accelerator.num_processes > 1 else None
        return certify(
            self._certified_claim,
            self._whole_model(),
            radii,
            confidence,
            draws,
            at_least,
            attacked,
            progress=not self.args.disable_tqdm and self.accelerator.is_main_process,
            share=share,
        )

    def _share(self, seeds: list[int], count: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        with self.accelerator.split_between_processes(seeds) as own:
            mine = count(own).tolist()
        return np.array(gather_object(mine), dtype=np.int64)
