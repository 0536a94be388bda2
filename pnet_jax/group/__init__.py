"""What a cohort teaches about one more participant, as priors."""
