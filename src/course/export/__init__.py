"""Our networks as classes of Diffusers and transformers, with equal results: weights move by renaming keys."""
