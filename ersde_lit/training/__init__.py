"""Training: LightningModules of denoisers and of noisy classifiers, averaged weights, the optimiser, and checkpoints.

`fit`, `validate`, `test` and `predict` are LightningCLI: every option of model, data and trainer is set in YAML or on
the command line, every class replaced by `class_path`; `--print_config` shows all.

- Configurations: `configs/digits*.yaml` (EDM, VP with noise prediction, VE with score prediction, a classifier),
  `fashion_mnist.yaml`, `emoji64.yaml` and `emoji64_edm2.yaml` (an hour on a CPU core each), `cifar10_*.yaml` and
  `imagenet64_edm_adm.yaml`: EDM's published recipes (Karras et al. 2022), `imagenet64_edm2_*.yaml`: EDM2's, sizes XS
  to XL (Karras et al. 2024); ImageNet-64 in bf16 (`--trainer.precision bf16-mixed` for any). They were tried with small
  networks on small data, not trained to the end. `--model.network.init_args.label_dim 10` makes CIFAR-10
  class-conditional.
- EDM2: `networks.EDM2UNet` normalises its weights in each training step; `uncertainty: true` learns the loss at each
  noise level beside any network and weighs the levels by it (`val/loss` stays without); an EMA with half_life 1e12 and
  ramp_up 0.0873 is the power-function average of width 0.10.
- Restoration (EDA, Qiu et al. 2026): with `noise` other than white (`denoisers.BiasField`, `FieldNoise`, `PairNoise`)
  and process, preconditioning and prediction `EDA`, "eda", "eda", y = x0 + lam N goes from the clean image to the
  degraded one at lam = 1, and `restore` goes back (`model.restore` in Python). `configs/bias_field.yaml` trains it on
  brain slices under random fields, `emoji_shadows.yaml` on pairs; `callbacks.RestorationCallback` tracks PSNR and SSIM.
- Images of your own: `python -m ersde_lit data ... --config_out FILE` writes a configuration (`ersde_lit.data`). Image
  size and classes that a configuration leaves out are the data's (`num_classes: 0` trains without classes).
- Runs: `runs/<name of the configuration>`, or `--run NAME`. A run is saved every ten minutes (`--checkpoint.minutes`),
  before and after each validation, on Ctrl-C and on SIGTERM, and the same command resumes it, bit for bit on a CPU.
  More epochs or steps, another cadence of validation and other callbacks go on in the same run, unless the learning
  rate has begun to fall. A run that diverges ends with exit code 2 and names its last good checkpoint; weights that are
  not finite are never saved. With an FIDCallback, best.ckpt is the checkpoint of the lowest FID, with a
  RestorationCallback of the highest PSNR.
- Fine-tuning: `fit --config mine.yaml --init_from model.ckpt` starts a new run from averaged weights (a checkpoint's,
  or of anything that `import` reads); other classes by `--init_skip embed_label` (`map_label` in EDM's networks).
- Curves: TensorBoard, or `--trainer.logger WandbLogger --trainer.logger.project NAME` (Weights & Biases).
- Learning rate: `--model.optimizer.warmup`, `decay` (linear, or `decay_shape cosine`), `constant` (EDM2's inverse
  square root).
- Devices: noise, augmentation and order depend on the seed and an image's number in the run, so a step of `batch_size`
  images is the same on one device or sixty-four: `--trainer.devices 4 --trainer.strategy ddp`, or `fsdp2`, which shards
  trained weights, gradients and optimiser state. `--device_batch_size N` accumulates. On several machines: `torchrun
  ... -m -- ersde_lit fit ...`; on SLURM `--signal=TERM@120` and requeue on exit code 143.
- Averages: validation, FID and sampling use the EMA; raw weights are in the checkpoint too. With the callback
  `PowerEMA` a run keeps EDM2's power-function averages (Karras et al. 2024) in snapshots, of which `python -m ersde_lit
  ema runs/NAME --sigma_rel 0.12 --out model.ckpt` makes an average of any length. From 19 snapshots of widths 0.05 and
  0.10, any width from 0.02 to 0.25 was within 3e-4 of one tracked all along. As a second `--config` (`callbacks+` adds
  to those of the first):

```yaml
trainer:
  callbacks+:
    - class_path: ersde_lit.training.PowerEMA
      init_args: {every_n_images: 5000, lengths: [0.05, 0.10]}  # 16 to 64 snapshots a training
```
"""

from ersde_lit.training.checkpoint import AtomicCheckpointIO, carry, load
from ersde_lit.training.ema import EMA
from ersde_lit.training.fsdp import FSDP2
from ersde_lit.training.module import DiffusionModule
from ersde_lit.training.noisy_classifier import NoisyClassifier, load_classifier
from ersde_lit.training.optimizer import AdamW, AdamWConfig
from ersde_lit.training.posthoc import reconstruct
from ersde_lit.training.resume import RollingCheckpoint
from ersde_lit.training.snapshots import PowerEMA
from ersde_lit.training.weights import weights_digest

__all__ = [
    "EMA",
    "FSDP2",
    "AdamW",
    "AdamWConfig",
    "AtomicCheckpointIO",
    "DiffusionModule",
    "NoisyClassifier",
    "PowerEMA",
    "RollingCheckpoint",
    "carry",
    "load",
    "load_classifier",
    "reconstruct",
    "weights_digest",
]
