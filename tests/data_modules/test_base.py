from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from ersde_lit.data import ImageDataModule, Split


class Tiny(ImageDataModule):
    """Image k is filled with k, its left column with 255; label k % 3."""

    image_shape, num_classes = (2, 4, 6), 3
    loads = 0

    def load(self):
        self.loads += 1
        images = torch.arange(25, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 4, 6).clone()
        images[..., 0] = 255
        labels = torch.arange(25) % 3
        return {
            "train": Split(images[:20], labels[:20]),
            "val": Split(images[20:], labels[20:]),
            "test": Split(images[20:], labels[20:]),
        }


def test_batches_are_the_images_scaled_and_stay_paired_with_their_labels():
    data = Tiny(batch_size=8)
    batches = list(data.train_dataloader())
    assert [len(x) for x, _ in batches] == [8, 8]  # the incomplete one is dropped
    for x, labels in batches:
        assert x.dtype == torch.float32
        assert x.shape == (8, 2, 4, 6)
        assert labels.dtype == torch.int64
        number = ((x[:, 0, 0, -1] + 1) * 127.5).round().long()
        assert torch.equal(number % 3, labels)
        assert torch.equal(x[:, 0, 0, 0], torch.ones(8))
    assert x.min() >= -1
    assert (batches[0][0] * 127.5 + 127.5 - (batches[0][0] * 127.5 + 127.5).round()).abs().max() < 1e-4


def test_every_byte_comes_back_from_float():
    data = Tiny()
    data._splits = {"val": Split(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1), torch.zeros(256).long())}
    x = torch.cat([x for x, _ in data.val_dataloader()])
    assert torch.equal((x * 127.5 + 128).clip(0, 255).to(torch.uint8), data._splits["val"].images)


def test_training_is_shuffled_and_validation_is_not():
    data = Tiny(batch_size=20)
    loader = data.train_dataloader()
    (train, _), (again, _) = next(iter(loader)), next(iter(loader))
    assert torch.equal(train, again)
    assert not torch.equal(train, data.split("train").images / 127.5 - 1)
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], train)
    x, labels = next(iter(data.val_dataloader()))
    assert torch.equal(x, data.split("val").images / 127.5 - 1)
    assert torch.equal(labels, data.split("val").labels)


def test_flips_mirror_about_half_of_the_training_images_and_no_other():
    data = Tiny(batch_size=20, horizontal_flip=True)
    loader, seen = data.train_dataloader(), []
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        seen += [next(iter(loader))[0]]
    bright = torch.cat(seen) == 1
    left, right = bright[..., 0].all(dim=(1, 2)), bright[..., -1].all(dim=(1, 2))
    assert torch.equal(left, ~right)
    assert 150 < right.sum() < 250
    assert not any((x[..., -1] == 1).any() for x, _ in data.val_dataloader())
    assert all((images[..., 0] == 255).all() for images in data.batches())


@pytest.mark.parametrize(("devices", "batches", "images"), [(1, 1, 8), (2, 1, 4), (1, 4, 2), (2, 2, 2)])
def test_a_step_is_shared_by_devices_and_accumulated_batches(devices: int, batches: int, images: int):
    data = Tiny(batch_size=8)
    share = []
    for rank in range(devices):
        data.trainer = SimpleNamespace(
            world_size=devices, global_rank=rank, accumulate_grad_batches=batches, fit_loop=AT_THE_START
        )
        data.setup("fit")
        share.append([labels for _, labels in data.train_dataloader()])
    assert all(len(labels) == images for batch in share for labels in batch)
    assert [len(batch) for batch in share] == [2 * batches] * devices  # 2 steps of 8 in 20 images
    dealt = torch.stack([torch.cat(batch) for batch in share], 1).flatten()
    assert torch.equal(dealt, torch.cat([labels for _, labels in Tiny(batch_size=8).train_dataloader()]))


def test_what_cannot_be_shared_is_refused():
    data = Tiny(batch_size=8)
    data.trainer = SimpleNamespace(world_size=3, accumulate_grad_batches=2)
    with pytest.raises(
        ValueError, match=r"batch_size 8 cannot be shared by 3 device\(s\) x 2 .* choose a multiple of 6"
    ):
        data.setup("fit")


AT_THE_START = SimpleNamespace(
    epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
)


def test_reference_images_are_the_training_images_as_bytes_in_order():
    data = Tiny()
    chunks = list(data.batches(batch_size=7))
    assert [len(c) for c in chunks] == [7, 7, 6]
    assert torch.equal(torch.cat(chunks), data.split("train").images)
    assert chunks[0].dtype == torch.uint8


def test_held_out_images_are_a_fixed_choice_from_all():
    whole = Tiny().split("test").images
    few = Tiny().held_out(3)
    assert torch.equal(Tiny().held_out(5), whole)
    assert torch.equal(few, Tiny().held_out(3))
    assert not torch.equal(few, whole[:3])
    assert len({*few[:, 0, 0, 1].tolist()} & {20, 21, 22, 23, 24}) == 3


def test_loads_once():
    data = Tiny(batch_size=4)
    data.setup("fit")
    data.setup("validate")
    list(data.batches())
    assert data.loads == 1


def test_serves_a_trainer(tmp_path):
    class Counts(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), [0, 0, 0]

        def training_step(self, batch, _):
            self.seen[0] += len(batch[1])
            return self.weight * batch[0].mean()

        def validation_step(self, batch, _):
            self.seen[1] += len(batch[1])

        def predict_step(self, batch, _):
            self.seen[2] += len(batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model, data = Counts(), Tiny(batch_size=8)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.predict(model, datamodule=data)
    assert model.seen == [32, 10, 5]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Tiny(batch_size=0), "batch_size must be at least 1"),
        (lambda: Tiny(batch_size=21).train_dataloader(), "exceeds the 20 training images"),
        (lambda: Tiny().split("valid"), "no split named 'valid': choose from train, val, test"),
    ],
)
def test_says_in_one_line_what_is_wrong(attempt, message):
    with pytest.raises(ValueError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)
