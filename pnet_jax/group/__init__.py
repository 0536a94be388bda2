"""Group models: priors learned from a cohort for new participants."""
