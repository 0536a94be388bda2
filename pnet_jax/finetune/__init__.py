"""Fine-tuning on one recording of a participant, as pure functions; `personalization` is the loop around them."""

from pnet_jax.finetune.objective import Own, Subject
from pnet_jax.finetune.subject import make_subject, shape_of, stacked
from pnet_jax.finetune.wave import Tuned, begin, fine_tune

__all__ = ["Own", "Subject", "Tuned", "begin", "fine_tune", "make_subject", "shape_of", "stacked"]
