"""Atlas, mixture and hardening: from embeddings to a subject's parcels."""
