"""Fine-tuning on one recording of a participant, as pure functions; `personalization` runs them for many recordings."""

from pnet_jax.finetune.objective import FinetuneSubject, IndividualParameters
from pnet_jax.finetune.subject import make_subject, shape_of, stacked
from pnet_jax.finetune.wave import Tuned, fine_tune, initial_parameters

__all__ = ["FinetuneSubject", "IndividualParameters", "Tuned", "fine_tune", "initial_parameters", "make_subject", "shape_of", "stacked"]
