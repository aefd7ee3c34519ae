"""Sweeps: samplers x NFE x sets of seeds, sampled, measured and kept cell by cell, and reported.

    python -m ersde_lit evaluate --ckpt_path runs/digits/checkpoints/last.ckpt --solvers default,dpm++2m,heun \\
        --nfe 5,10 --seeds 0-1796 1797-3593 --data ersde_lit.data.Digits --features classifier --out results

writes a table, a CSV and a plot over NFE, with everything that changes the numbers. Several sets of seeds give mean and
standard deviation, or with `--best` the best, as EDM reports. `--grids edm,log_uniform` crosses solvers with grids.
In YAML (`--config`) `samplers` are options of `sample` or any `Sampler` by class_path, those of diffusers and
k-diffusion too (`ersde_lit.interop`). The same command resumes in mid-cell after a kill; `--devices 4` shares the work.
A cell with a sample that is not finite is `nan`, and the others go on.
"""
