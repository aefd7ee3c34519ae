"""From seeds to stored images: `seeds` and `labels` choose, `generate` samples, `images` quantises, `formats` store;
`work` and `run` make of it a long run that any number of ranks share and that goes on whatever killed it.

Nothing is imported here, so that reading `--seeds` or checking `--out` does not wait for torch.
"""
