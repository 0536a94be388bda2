"""One module for each question that a cohort can be asked; its function, of the module's name, is exported by `pnet_jax.evaluate`."""
