"""Interfaces of other toolkits: schedulers for diffusers, samplers for ComfyUI and k-diffusion, rivals, weights.

Import the file you need. A scheduler for diffusers' pipelines of variance preserving models (but DDIMPipeline and
PNDMPipeline, which take their own alone); its options are those of `ERSDE`, its conventions those of diffusers'
DPM-Solver; image k comes from the k-th generator alone. `from_config` keeps the noising process and `clip_sample` of
the scheduler before, and refuses options it does not know by name:

```python
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from ersde_lit.interop.diffusers.scheduler import ERSDEScheduler

unet = UNet2DModel(8, norm_num_groups=8, layers_per_block=1, block_out_channels=(8, 8, 8, 8))
pipe = DDPMPipeline(unet, DDPMScheduler())  # or DDPMPipeline.from_pretrained(...), StableDiffusionPipeline, ...
pipe.scheduler = ERSDEScheduler.from_config(pipe.scheduler.config, order=2, noise_scale="er_sde_3")
images = pipe(4, [torch.Generator().manual_seed(seed) for seed in range(4)], num_inference_steps=20).images
```

`ERSDEFlowMatchScheduler` is for flow models (Stable Diffusion 3, Flux), whose pipelines pass no generator on, nor does
DiTPipeline (`torch.manual_seed`, or `noise_scale="ode"`), and `ERSDEEDMScheduler` for EDM's (not Cosmos', which hand
`step` an x0 of their own).

All three run learned samplers with the option ``tables="NAME.tables"``, at the tables' own levels; their saved
configuration holds the content. Such a run begins with ``scheduler.init_noise_sigma`` times noise, so pipelines that do
not multiply by it (flow models') are given their latents; DDPMPipeline, which takes none, starts too low.

With ersde-lit installed in ComfyUI's Python, one line in ComfyUI's folder adds the node "ER-SDE sampler (ersde-lit)", a
sampler for SamplerCustom with the options of `ERSDE`, eta of the noise scale, and a seed, and "Learned sampler
(ersde-lit)", which gives the sampler in a file of tables and its sigmas:

```sh
echo "from ersde_lit.interop.comfyui import *" > custom_nodes/ersde_lit_nodes.py
```

`sample_er_sde` has the signature that ComfyUI, stable-diffusion-webui and k-diffusion call, so a plug-in is its import;
ComfyUI's flow models are recognised. With the option `tables`, its sigmas are those of `table_sigmas`:

```python
import torch
from ersde_lit.interop.k_diffusion import sample_er_sde


def model(x, sigma):  # a model as these programs wrap it, here exact for data from N(0.3, 0.5^2)
    sigma = sigma.view(-1, 1, 1, 1)
    return (0.25 * x + sigma**2 * 0.3) / (0.25 + sigma**2)


sigmas = torch.tensor([14.6, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0])
x0 = sample_er_sde(model, 14.6 * torch.randn(4, 3, 64, 64), sigmas, order=2, noise_scale="er_sde_3")
```

Models in folders or on the Hugging Face hub (`pip install "ersde-lit[hub]"`), as safetensors that run no code:

```python
from ersde_lit.interop.pretrained import from_pretrained, save_pretrained
from ersde_lit.networks import UNet
from ersde_lit.training import DiffusionModule

save_pretrained(DiffusionModule(UNet((1, 8, 8))), "my_model")  # or training.load("runs/digits/checkpoints/best.ckpt")
model = from_pretrained("my_model")  # or "user/repository"
images = model.sample(seeds=range(4), nfe=10)  # [4, 1, 8, 8]
```

Samplers of diffusers and k-diffusion run on our grids and noise, in `evaluate` and `FIDCallback`:

```yaml
samplers:
  unipc:
    class_path: ersde_lit.interop.rivals.DiffusersSampler
    init_args: {scheduler: UniPCMultistepScheduler, config: {solver_order: 3}}
  dpmpp_2m_sde:
    class_path: ersde_lit.interop.rivals.KDiffusionSampler  # pip install --no-deps k-diffusion; torchsde torchdiffeq
    init_args: {function: sample_dpmpp_2m_sde}
```
"""
