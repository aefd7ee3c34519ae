"""Options shared by several commands, one dataclass per subject; torch is imported only when they are used."""
