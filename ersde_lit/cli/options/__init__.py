"""Options that several commands share, a dataclass a subject. None imports torch before it is used."""
