"""A solver's errors step by step, on Gaussian data, on a mixture, or on a network. Knows no image metric."""
