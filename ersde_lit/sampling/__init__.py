"""From seeds to stored images: `seeds` and `labels` choose, `generate` samples, `images` quantises, `writers` store.

Nothing is imported here, so that reading `--seeds` or checking `--out` does not wait for torch.
"""
