"""Options of the model in a checkpoint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ersde_lit.errors import UserError

if TYPE_CHECKING:
    from ersde_lit.training import DiffusionModule


@dataclass(frozen=True)
class ModelOptions:
    """The model.

    Args:
        labels: random (a function of the seed, if nothing is said), all (in turn), none, or classes by number or name,
            as in 3 or 0,1,5-7 or cat,dog; a number counts before a name. Tables are learned for random or none.
        decoder: folder of a diffusers AutoencoderKL, for a model of latents (EDM2's: stabilityai/sd-vae-ft-mse).
            Tables are learned with gradient_free then.
        trust: import network classes from outside ersde_lit that the checkpoint names.
    """

    labels: str | int | None = None
    decoder: str | None = None
    trust: bool = False

    def load(self, ckpt_path: str, unconditional: bool = False) -> "DiffusionModule":
        """Loads a checkpoint's module, to make images with these labels, or also without.

        Raises:
            UserError: it restores images, or was not trained to make images without labels.
        """
        from ersde_lit.training import load

        model = load(ckpt_path, self.trust)
        model.check_samples()
        if model.num_classes and not model.label_dropout and (unconditional or self.labels == "none"):
            raise UserError("the model was trained with labels only, without label_dropout: it knows no other images")
        return model
