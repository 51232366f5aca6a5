"""Training at a real size: images from disk, any of five networks, checkpoints, resuming. See __main__.py."""
