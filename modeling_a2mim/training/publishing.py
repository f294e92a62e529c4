"""What users get of a run: an exported folder with its card and record, and the same on the Hub, at the end and while
training goes on."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy, has_length

from ..arguments.training import A2MIMTrainingArguments
from ..export.folder import export_model, say_outdated, write_card
from ..export.hub import push_folder
from ..export.record import LastEvaluation, describe_run
from .endings import writing
from .preemption import STOPPED
from .resumable import ResumableTrainer


logger = logging.getLogger("a2mim")


class PushCallback(TrainerCallback):
    """Pushes the model of each checkpoint to the Hub while training goes on, as `hub_strategy` says. The push before
    must have ended, or this one is left out, unless `hub_always_push` says otherwise.

    Args:
        push: begins a push with a message, and gives its future.
    """

    def __init__(self, push: Callable[[str], Future]):
        self.push, self.in_progress = push, None

    def on_save(self, args, state, control, **kwargs):
        if not args.push_to_hub or args.hub_strategy == HubStrategy.END or not state.is_world_process_zero:
            return
        if self.in_progress is None or self.in_progress.done() or args.hub_always_push:
            self.in_progress = self.push(f"Training in progress, step {state.global_step}")

    def on_train_end(self, args, state, control, **kwargs):
        self.finish()

    def finish(self):
        """Wait for the push in progress, if there is one; its error is a warning."""
        push, self.in_progress = self.in_progress, None
        if push is not None and (error := push.exception()):  # the last push, which training waits for, raises
            logger.warning("a push while training failed: %s", error)


class PublishingTrainer(ResumableTrainer):
    """A `ResumableTrainer` whose `output_dir` ends up as what users load.

    Args:
        pretraining_model: for a classifier, the model it was made from, exported beside it.
        provenance: what the model card says of data and origin (`export.record.describe_run`).

    Subclasses may override `model_to_export`, `export`, `write_card` and `after_evaluation`.
    """

    args: A2MIMTrainingArguments
    last_evaluation: LastEvaluation | None = None
    _evaluates_own = True
    _evaluated_images: int | None = None

    def __init__(self, *args, pretraining_model=None, provenance: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self._given = self.eval_dataset  # subclasses make samples of it
        self.pretraining_model = pretraining_model
        self.provenance = dict(provenance or {})
        if self.args.hub_license is not None:
            self.provenance["license"] = self.args.hub_license
        self.pushes = PushCallback(lambda message: self.push_to_hub(message, blocking=False))
        self.add_callback(self.pushes)

    def run(self) -> dict[str, float]:
        """Train (or go on, as `args.resume_from_checkpoint` says), save, evaluate if there is anything to evaluate on,
        and push if `args.push_to_hub`. Returns the metrics.

        Raises:
            SystemExit: if SIGTERM stopped the run (`args.enable_jit_checkpoint`).
        """
        metrics = self.train(resume_from_checkpoint=self.args.resume_from_checkpoint).metrics
        if self.stopped_by_sigterm:
            raise SystemExit(STOPPED)  # the model is not finished
        self.save_model()
        if self.args.should_save:
            say_outdated(self.args.output_dir)
        self.save_metrics("train", metrics)
        self.save_state()
        if self.eval_dataset is not None:
            with self._weights_kept():
                evaluation = self.evaluate()
            self.save_metrics("eval", evaluation)
            further = self.after_evaluation(evaluation)
            if further:
                self.save_metrics("eval", {**evaluation, **further})
            metrics |= {**evaluation, **further}
        if self.args.push_to_hub:
            self.push_to_hub()
        elif self.args.should_save:
            self.write_card(self.args.output_dir)  # with the evaluation
        return metrics

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """As Trainer's, also of other images than `eval_dataset` of this trainer: the record says so."""
        known = [None, self._given, self.eval_dataset]
        for several in known[1:]:
            known += several.values() if isinstance(several, dict) else ()
        own = self.eval_dataset is None or isinstance(eval_dataset, str) or any(eval_dataset is one for one in known)
        outer, self._evaluates_own = self._evaluates_own, own  # callbacks may evaluate meanwhile
        try:
            return super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self._evaluates_own = outer

    def evaluation_loop(self, dataloader, *args, **kwargs):
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        # Of a stream each process knows its own share alone, with images that are repeated.
        known = self.args.world_size == 1 or has_length(dataloader)
        self._evaluated_images = output.num_samples if known else None
        return output

    def log(self, logs, start_time=None):
        if any(name.startswith("eval_") for name in logs):  # right behind their loop
            self.last_evaluation = LastEvaluation(self._evaluated_images, self._evaluates_own, not self.is_in_train)
        super().log(logs, start_time)

    @contextlib.contextmanager
    def _weights_kept(self) -> Iterator[None]:
        """Trainer rounds the weights themselves for an evaluation in half precision (`bf16_full_eval`)."""
        if not (self.args.bf16_full_eval or self.args.fp16_full_eval):
            yield
            return
        kept = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        yield
        self.model.float().load_state_dict(kept)

    def after_evaluation(self, metrics: dict[str, float]) -> dict[str, float]:
        """What else is measured and drawn after the last evaluation, before the card is written; further metrics."""
        return {}

    # The folder

    def save_model(self, output_dir=None, _internal_call=False):
        """Write the folder that users load and the Hub gets (see `export`); Trainer itself saves checkpoints."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        self.before_saving()
        self.pushes.finish()  # which reads these files
        if self.args.should_save:
            with writing(output_dir or self.args.output_dir):
                self.export(output_dir or self.args.output_dir)

    def model_to_export(self):
        """The model in the form that users load."""
        return self.unwrapped()

    def export(self, folder: str):
        """Write what users load to `folder`; called by the process that saves."""
        export_model(self.model_to_export(), folder, self.pretraining_model, self.record(), self.hub_model_id)

    def write_card(self, folder: str):
        """Write the card and the record of an exported folder anew; called by the process that saves."""
        write_card(self.model_to_export(), folder, self.record(), self.hub_model_id)

    def record(self) -> dict:
        """How the model was made, so far (`export.record.describe_run`)."""
        record = describe_run(self, self.provenance)
        return record if self.hub_model_id is None else {**record, "repo_id": self.hub_model_id}

    # The Hub

    def create_model_card(self, license=None, tags=None, finetuned_from=None, dataset=None):
        """Write the model card of `output_dir`, where `save_model` has been called.

        Args:
            license: of the weights.
            tags: one or more, beside those that every card has.
            finetuned_from: what a classifier was made from, an id on the Hub.
            dataset: one or more ids on the Hub.
        """
        self._add_provenance(license, tags, finetuned_from, dataset)
        if self.args.should_save:
            self.write_card(self.args.output_dir)

    def _add_provenance(self, license=None, tags=None, finetuned_from=None, dataset=None):
        tags, datasets = ([value] if isinstance(value, str) else value for value in (tags, dataset))
        given = {"license": license, "tags": tags, "base_model": finetuned_from, "datasets": datasets}
        self.provenance |= {name: value for name, value in given.items() if value is not None}

    def push_to_hub(
        self,
        commit_message=None,
        blocking=True,
        token=None,
        revision=None,
        private=None,
        create_pr=False,
        dry_run=False,
        **card,
    ):
        """Export to `output_dir`, and upload what belongs on the Hub and nothing else (`hub.push_folder`). `card`:
        arguments of `create_model_card`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if private is not None:
            self.args.hub_private_repo = private
        if self.hub_model_id is None and not dry_run:
            self.init_hf_repo(token=token)
        self._add_provenance(**card)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        return push_folder(
            self.args.output_dir,
            self.hub_model_id,
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message or self.args.hub_commit_message,
            token=token,
            create_pr=create_pr,
            pictures_of_data=self.args.hub_pictures,
            dry_run=dry_run,
            blocking=blocking,
        )
