"""What a trainer of marks leaves behind: the public files beside every checkpoint, and a repository that claims only what was read."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..evidence import Evidence
from ..keys import Owner, WatermarkKey, refuse_keys_inside
from ..publishing import Extras, Published, publish
from ..publishing.precommit import public_files, write_public_files
from ..publishing.publish import fetch_card
from ..suspects.answers import AccessError
from .restoring import RestoringTrainer


logger = logging.getLogger(__name__)


class PublishingTrainer(RestoringTrainer):
    """
    [`~transformers.Trainer`] that saves a model with the public files of its key, and publishes what it read the mark from.

    Attributes:
        key ([`WatermarkKey`]): Of the mark; never written.
        evidence ([`Evidence`], *optional*): What was read after training.
    """

    key: WatermarkKey
    evidence: Evidence | None
    # Signs the statement when the model is published; never saved.
    _owner: Owner | None

    def verify(self, suspect: Any = None) -> Evidence:
        """Evidence for `suspect`, the model in training by default."""
        raise NotImplementedError

    def public_files(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Those that go beside a saved model, see [`~publishing.precommit.public_files`]: nothing is opened before the mark was read from its files."""
        if self.evidence is None or self.is_in_train:
            return public_files(self.key, False)
        try:
            saved = self.verify(folder)
            found, reason = saved.found, saved.reason
        except AccessError as error:  # a net without a config cannot be built from its files, and asked
            found, reason = False, str(error)
        if self.evidence.found and not found:
            logger.warning(
                "the mark was in the model after training, but it cannot be read from %s (%s); do not claim what lies there",
                folder,
                reason,
            )
        return public_files(self.key, found)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        refuse_keys_inside(folder)
        super()._save(output_dir, state_dict)
        # A pickle that nothing reads back; it holds tokens in clear and would be pushed with the model.
        (folder / "training_args.bin").unlink(missing_ok=True)
        if self.args.should_save:
            write_public_files(folder, self.public_files(folder))

    # Publishing

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of the [`~transformers.Trainer`], unless the folder has one already: people write there."""
        if not (Path(self.args.output_dir or ".") / "README.md").exists():
            super().create_model_card(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        owner: Owner | None = None,
        extras: Extras | None = None,
        include: Sequence[str] = (),
        license: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Saves the model, reads the mark from the saved files, and publishes these files, `watermark/` and a card with a Watermark section in
        one atomic commit; see [`~publishing.publish`]. The statement is signed by the owner that the trainer was made with, and left out where there
        is none or where the files do not hold the mark, whatever was read after training.

        Args:
            owner ([`Owner`], *optional*):
                Needed where the trainer was made with `key=`.
            extras ([`~publishing.Extras`], *optional*):
                Fidelity, survival table, certificate, timestamps.
            include (`Sequence[str]`, *optional*):
                Files of other than the known kinds to publish, by their path in the output folder.
            license (`str`, *optional*):
                For the card, such as `apache-2.0`.
            kwargs (*optional*):
                For [`~transformers.Trainer.create_model_card`].

        Returns:
            [`~publishing.Published`], or with `blocking=False` a future of it. `None` on all processes but the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        fetch_card(str(self.args.output_dir), str(self.hub_model_id), token, revision or self.args.hub_revision)
        name = kwargs.pop("model_name", None) or str(self.hub_model_id).split("/")[-1]
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        self.create_model_card(
            model_name=name, tags=tags + list(getattr(self.model, "model_tags", None) or []), license=license, **kwargs
        )
        owner = owner or self._owner
        self._finish_current_push()

        def upload() -> Published:
            result = publish(
                str(self.args.output_dir),
                str(self.hub_model_id),
                self.key,
                owner,
                None if owner is None else self.verify,
                extras,
                token=token,
                revision=revision or self.args.hub_revision,
                message=commit_message or "End of training",
                include=include,
                license=license,
            )
            self._warn_of(result)
            return result

        return upload() if blocking else HfApi().run_as_future(upload)

    def _warn_of(self, result: Published) -> None:
        """Tells what the owner should know about a commit, first of all that it makes no claim."""
        for warning in result.warnings:
            logger.warning("%s: %s", result.repo_id, warning)
        if result.statement is not None:
            return
        if result.evidence is None:
            missing = "no `owner=` signs it"
        else:
            missing = f"the mark was not read back from the saved files ({result.evidence.reason})"
            if self.evidence is not None and self.evidence.found:
                missing += "; after training it was there, so the weights were replaced since"
        logger.warning("the model is published without a statement: %s", missing)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A push during training: model and precommit, without any claim. The original would upload a pickle of the arguments."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        # A copy, because the next save may rewrite or delete the checkpoint while the upload runs. Pushes leave out names with `_`.
        copy = Path(str(self.args.output_dir)) / f"_push-{self.state.global_step}"
        shutil.copytree(
            checkpoint_folder, copy, ignore=shutil.ignore_patterns("*.pt", "*.pth", "*.bin"), dirs_exist_ok=True
        )

        def upload() -> Any:
            try:
                model_id, token, revision = str(self.hub_model_id), self.args.hub_token, self.args.hub_revision
                return publish(copy, model_id, self.key, token=token, revision=revision, message=message)
            finally:
                shutil.rmtree(copy)

        jobs: Any = [] if self.push_in_progress is None else self.push_in_progress.jobs
        self.push_in_progress: Any = PushInProgress([*jobs, HfApi().run_as_future(upload)])  # type: ignore[arg-type]
