import pytest
import torch
from tiny import Noise, network, trainer

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.denoisers.labels import labels_of_seeds
from ersde_lit.interop.weights.model import write
from ersde_lit.interop.weights.safetensors_file import export
from ersde_lit.interop.weights.sources import read_source
from ersde_lit.sampling.generate import generate
from ersde_lit.solvers import default
from ersde_lit.training import DiffusionModule, load
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.classes import CLASSES_KEY, Classes


class Few(ImageDataModule):
    """Images of some of three classes; the others may be among the held-out ones."""

    image_shape, num_classes, class_names = (1, 4, 4), 3, ("cat", "dog", "emu")

    def __init__(self, labels=(0, 2), held_out=(0, 1, 2)):
        super().__init__(batch_size=4)
        self.labels, self.held_out = torch.tensor(labels), torch.tensor(held_out)

    def load(self):
        def split(labels):
            return Split(torch.zeros(24, 1, 4, 4, dtype=torch.uint8), labels.repeat(24)[:24])

        return {"train": split(self.labels), "val": split(self.held_out), "test": split(self.held_out)}


def fitted(folder, data, module=None, **options):
    module = module or DiffusionModule(network())
    run = trainer(folder, max_epochs=1)
    run.fit(module, datamodule=data, **options)
    run.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def test_only_classes_with_training_images_are_sampled(tmp_path):
    model = load(fitted(tmp_path, Few()))
    for denoiser in (model.denoiser, model.ema_denoiser):
        assert (denoiser.trained_classes, denoiser.class_names) == ((0, 2), ("cat", "dog", "emu"))
    (made,) = generate(model.ema_denoiser, default(2), range(60), 2)
    assert {*made.labels.tolist()} == {0, 2}
    with pytest.raises(ValueError, match="class 1 had no training image"):
        generate(model.ema_denoiser, default(2), range(2), 2, [0, 1])
    with pytest.raises(ValueError, match="class 1 had no training image"):
        model.sample([0], [1], nfe=2)


@pytest.mark.parametrize("data", [Few((0, 1, 2)), Noise()], ids=["all there", "nothing known"])
def test_where_no_class_is_missing_labels_are_those_of_ever(tmp_path, data):
    model = load(fitted(tmp_path, data))
    assert model.ema_denoiser.trained_classes is None
    (made,) = generate(model.ema_denoiser, default(2), range(60), 2)
    assert torch.equal(made.labels, labels_of_seeds(range(60), 3))


def test_a_checkpoint_from_before_has_all_classes(tmp_path):
    path = fitted(tmp_path, Few())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[CLASSES_KEY]
    torch.save(checkpoint, path)
    assert load(path).ema_denoiser.trained_classes is None
    again = fitted(tmp_path / "again", Few(), DiffusionModule(network()), ckpt_path=path)
    assert load(again).ema_denoiser.trained_classes is None


def test_a_training_that_goes_on_with_other_classes_adds_them(tmp_path):
    first = fitted(tmp_path, Few((2,)))
    module = load(first)
    second = fitted(tmp_path / "second", Few((0,)), module)
    assert load(second).ema_denoiser.trained_classes == (0, 2)
    third = fitted(tmp_path / "third", Few((1,)), load(second))
    assert load(third).ema_denoiser.trained_classes is None


def test_classes_are_exported_and_imported(tmp_path):
    export(fitted(tmp_path, Few()), tmp_path / "net.safetensors")
    write(read_source(tmp_path / "net.safetensors"), tmp_path / "again.ckpt")
    model = load(tmp_path / "again.ckpt")
    assert (model.ema_denoiser.trained_classes, model.ema_denoiser.class_names) == ((0, 2), ("cat", "dog", "emu"))


def test_an_unconditional_model_has_no_classes(tmp_path):
    model = load(fitted(tmp_path, Few(), DiffusionModule(network(num_classes=0))))
    assert (model.ema_denoiser.trained_classes, model.ema_denoiser.class_names) == (None, ())


def test_names_that_are_not_one_a_class_are_left_out():
    data = Few()
    data.class_names = ("cat",)
    assert Classes.of_data(data, 3) == Classes((0, 2), ())


@pytest.mark.parametrize(
    "classes",
    [7, [], {}, {"trained": [0]}, {"trained": [3], "names": []}, {"trained": [-1], "names": []},
     {"trained": [], "names": []}, {"trained": [True], "names": []}, {"trained": "01", "names": []},
     {"trained": None, "names": "abc"}, {"trained": None, "names": ["a"]}, {"trained": None, "names": [1, 2, 3]}],
)  # fmt: skip
def test_what_a_checkpoint_should_not_say_of_classes(tmp_path, classes):
    path = fitted(tmp_path, Noise())
    checkpoint = torch.load(path, weights_only=True)
    assert SPEC_KEY in checkpoint
    torch.save(checkpoint | {CLASSES_KEY: classes}, path)
    with pytest.raises(ValueError, match="cannot be rebuilt") as error:
        load(path)
    assert "\n" not in str(error.value)
