"""Weights of other toolkits: EDM, EDM2, guided-diffusion, diffusers' UNet2DModel, safetensors.

    python -m ersde_lit import SOURCE --out model.ckpt

makes a checkpoint for `sample`, `evaluate` and `fit --ckpt_path` of EDM's `.pkl` (all networks and preconditionings,
read without running the source in it) and EDM2's (published averages and snapshots, with the learned uncertainty),
guided-diffusion's `.pt` (64 to 256 pixels, classifiers too; its flags, where they are not the published ones), a folder
of diffusers' `DDPMPipeline`, `DDIMPipeline`, `PNDMPipeline` or `ScoreSdeVePipeline`, or `.safetensors` of `export
model.ckpt --out model.safetensors`. It prints what it found and what it assumed, and refuses what does not fit in a
line. `--config_out model.yaml` also writes the model's part of a configuration, for further training. EDM2's models for
ImageNet-512 sample latents: `sample` and `evaluate` decode them with `--decoder` (`ersde_lit.sampling`).

`configs/reproduce` holds published figures of ER-SDE-Solvers and of EDM2 as configurations of `evaluate`
(`tools/results/README.md` lists them), with where to get what they need.
"""
