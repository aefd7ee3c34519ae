"""Makes the files beside it, in the working folder: PYTHONPATH=OLD:OLD/tests python make.py, OLD a tree of 237af98."""

import os
from contextlib import suppress

import lightning
import torch
from quick_start import fit

from ersde_lit.cli import main
from ersde_lit.data import Digits
from ersde_lit.networks import Encoder
from ersde_lit.sampling.work import Work
from ersde_lit.training import DiffusionModule, NoisyClassifier

CHECKPOINT = "--ckpt_path=runs/half/checkpoints/last.ckpt"
CALLBACK = ["num_samples=64", "nfes=[2]", "nearest_images=0"]
SAMPLE = ["sample", CHECKPOINT, "--seeds=0-3", "--accelerator=cpu"]
OURS = ["--nfe=3", "--solver=er_sde", "--noise_scale=power:1.5", "--order=2", "--lam_max=40", "--grid=edm"]


class Killed(BaseException):
    pass


def die_in_epoch_1(module):
    if module.current_epoch == 1:
        raise Killed


def die_in_block_1(work, number, images, save=Work.save):
    if number == 1:
        raise Killed
    save(work, number, images)


def killed(command, owner, method, dying):
    before = getattr(owner, method)
    setattr(owner, method, dying)
    with suppress(Killed):
        main(command)
    setattr(owner, method, before)


os.environ["XDG_CACHE_HOME"] = os.path.abspath("cache")
changes = [f"--trainer.callbacks.init_args.{change}" for change in CALLBACK]
killed(fit(*changes, "--trainer.logger=false", "--run=half"), DiffusionModule, "on_train_epoch_start", die_in_epoch_1)
main(["export", CHECKPOINT.partition("=")[2], "--out=model.safetensors"])
main([*SAMPLE, *OURS, "--batch_size=2", "--out=samples.npz"])
killed([*SAMPLE, *OURS, "--batch_size=2", "--out=half.npz"], Work, "save", die_in_block_1)
cells = ["--solvers=default,er_sde:order=2", "--grids=edm:lam_max=20", "--nfe=2", "--seeds", "0-19"]
data = ["--data=ersde_lit.data.Digits", "--features=classifier", "--out=results", "--accelerator=cpu"]
main(["evaluate", CHECKPOINT, *cells, *data])

torch.manual_seed(0)
encoder = Encoder((1, 8, 8), 10, width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
trainer = lightning.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(NoisyClassifier(encoder, sigma_data=0.7), datamodule=Digits(batch_size=64))
trainer.save_checkpoint("classifier.ckpt")
main([*SAMPLE, "--nfe=2", "--out=guided.npz", "--classifier=classifier.ckpt", "--classifier_scale=1.5"])
