"""Sampling: from seeds to stored images, in blocks that any number of ranks share and that survive a kill.

    python -m ersde_lit sample --ckpt_path X.ckpt --seeds 0-49999 --nfe 20 --out samples.npz

- Output: a folder (PNGs), `.npz` (`arr_0` uint8 NHWC, `arr_1` labels), `.zip` (EDM's data sets) or `.png` (a grid).
- Sampler: `--preset fast`, `balanced`, `best` (8, 20, 50 calls) or `noisy` (20), or `--nfe` with `--solver`, `--grid`
  and their options, as flags or inline: `--solver er_sde:order=2:noise_scale=power:1.5 --grid edm:rho=5:sigma_max=40`.
  With none of them `ersde_lit.solvers.default(nfe)` samples; `--solver noisy` is for weak networks. `--config FILE`
  reads options from YAML.
- Learned samplers: `--solver NAME.tables`, a file of one table a number of calls, each with noise levels of its own;
  images know it by its content. `export model.ckpt --tables NAME.tables --out tuned.ckpt` makes it a checkpoint's
  default. Where it was learned for another network or guidance, that is said.
- Guidance: `--cfg_scale 2` (models trained with `--model.label_dropout 0.1`), `--guide early.ckpt --guide_scale 2`
  (autoguidance; a guide is a worse version of the model: `fit ... --run early --trainer.max_epochs 15`), `--classifier
  noisy.ckpt --classifier_scale 1` (`configs/digits_classifier.yaml` trains one), each within `--guidance_interval
  0.2-3`; `--eps_scale 1.005` against exposure bias. In Python each is a wrapper of a denoiser: `ersde_lit.denoisers`.
- Latents: a model of an autoencoder's latents (EDM2's for ImageNet-512) needs `--decoder FOLDER`, an `AutoencoderKL` of
  diffusers (EDM2's is stabilityai/sd-vae-ft-mse), whose images are stored; `model.sample` returns the latents.
- Resuming: finished blocks are kept next to `--out`. The same command resumes after a kill or a full disk, ends with
  the same bytes, and refuses to mix two commands. `--devices 4 --num_nodes 2` shares the blocks.
- Reproducing: options and checksums are stored with the images; `--like samples.npz --seeds 17 --out one.png` samples
  any of them again. Only options that determine images are read, so files of strangers are safe.
- Restoring: a model that was trained with `--model.noise` removes degradations; `restore --ckpt_path X --images FOLDER
  --out restored --nfe 5` starts from the images themselves, 8 or 16 bits, grey or in colour, of any size. Those larger
  than the network's are restored in tiles (`--tile`, `--overlap`) that fade into each other. `--clean FOLDER` prints
  PSNR and SSIM before and after; `--solver unipc2` and the like replace the sampler, and it resumes as `sample` does.
  One call (`--nfe 1`) gives the mean of what the image may have been, nearest by PSNR on data like the training's; more
  calls give one such image, and carry over better to other data.
- Viewing: `--trajectory steps.png` shows the x0 prediction of each step, `--preview now.png` images as they come.

In Python: `generate` samples blocks of seeds, `Work` and `Job` (or `Restoration`) are a resumable run.
Nothing is imported here, so that parsing `--seeds` or checking `--out` does not wait for torch.
"""
