"""pnet_jax: from a person's resting-state fMRI to that person's brain functional network."""
