"""A first phase of training in which the encoder stays as it is, and only what is new on it learns."""

import logging
import math

from transformers import TrainerCallback

from ..encoders.meta import TimmEncoder
from ..encoders.plan import classifier_parameters
from ..modeling_a2mim import find_core


logger = logging.getLogger("a2mim")


class FrozenStart(TrainerCallback):
    """Whether the encoder is frozen, by the step that training is at.

    Gradients are dropped, not left out: DistributedDataParallel reduces only those of parameters that needed some when
    it was made. Without a gradient an optimiser leaves a parameter alone, its weight decay and moments as well.
    """

    steps = 0  # of the phase

    def __init__(self, encoder: TimmEncoder):
        self._hold(encoder)

    def _hold(self, encoder: TimmEncoder):
        self.encoder = encoder
        head = classifier_parameters(encoder)
        self.parameters = [parameter for name, parameter in encoder.named_parameters() if name not in head]

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """
        Raises:
            ValueError: naming `freeze_encoder_steps`, if the encoder never learns.
        """
        self._hold(find_core(model).encoder)  # of the model that is trained: `model_init` makes another for each run
        if not any(parameter.requires_grad for parameter in self.parameters):
            raise ValueError("freeze_encoder_steps: the encoder is frozen in all of this run; leave it out")
        given = args.freeze_encoder_steps
        self.steps = math.ceil(given * state.max_steps) if given < 1 else int(given)
        if self.steps >= state.max_steps:
            raise ValueError(
                f"freeze_encoder_steps: {self.steps} are all of the {state.max_steps} steps, the encoder would learn "
                "nothing; give fewer, or more steps"
            )
        if state.global_step < self.steps:
            logger.info("the encoder stays as it is until step %d of %d", self.steps, state.max_steps)

    def holds(self, step: int) -> bool:
        """Whether the encoder is frozen in the step after this one."""
        return step < self.steps

    def before_forward(self) -> None:
        """Dropout, stochastic depth and the statistics of BatchNorm stay as they are."""
        self.encoder.eval()

    def after_backward(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
