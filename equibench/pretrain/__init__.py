"""The pretraining core: losses, heads, the decoder and the training loop. Methods are in `baselines/`."""
