"""Trained classes of a model and their names, stored in checkpoints."""

from dataclasses import dataclass
from typing import Any

from ersde_lit.data import ImageDataModule
from ersde_lit.errors import UserError

CLASSES_KEY = "classes"


@dataclass(frozen=True)
class Classes:
    """Trained classes and class names of a model.

    Attributes:
        trained: those that had training images, ascending; None: all, as far as is known.
        names: one a class, or none at all.
    """

    trained: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of_data(cls, data: Any, num_classes: int) -> "Classes":
        """Reads the classes of a data module's training images; those of a foreign DataModule are unknown."""
        if not num_classes or not isinstance(data, ImageDataModule):
            return cls()
        found = data.split("train").labels.unique().tolist()
        names = tuple(data.class_names) if len(data.class_names) == num_classes else ()
        return cls(None if len(found) == num_classes else tuple(found), names)

    @classmethod
    def read(cls, plain: Any, num_classes: int) -> "Classes":
        """Reads a checkpoint's entry, which is untrusted; None: written before there was one."""
        if plain is None:
            return cls()
        trained, names = plain["trained"], plain["names"]
        known = range(num_classes)
        if trained is not None and not (
            isinstance(trained, list) and trained and all(type(label) is int and label in known for label in trained)
        ):
            raise UserError(f"its trained classes are not some of 0 to {num_classes - 1}")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise UserError("the names of its classes are no list of texts")
        if len(names) not in (0, num_classes):
            raise UserError(f"it has {len(names)} names for {num_classes} classes")
        return cls(None if trained is None else tuple(sorted({*trained})), tuple(names))

    def plain(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        return {"trained": None if self.trained is None else [*self.trained], "names": [*self.names]}

    def after(self, before: "Classes | None", num_classes: int) -> "Classes":
        """Merges these with the classes of an earlier training; None: there was none."""
        if before is None:
            return self
        names = self.names or before.names
        if self.trained is None or before.trained is None:
            return Classes(None, names)
        both = {*self.trained, *before.trained}
        return Classes(tuple(sorted(both)) if len(both) < num_classes else None, names)
