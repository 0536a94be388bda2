"""Parcellation of one subject from embeddings: atlas, mixture model and hard labels."""
