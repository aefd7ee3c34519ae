"""Sweeps: samplers x NFE x sets of seeds, sampled, measured and kept cell by cell, and reported.

    python -m ersde_lit evaluate --ckpt_path runs/digits/checkpoints/last.ckpt --solvers default,dpm++2m,heun \\
        --nfe 5,10 --seeds 0-1796 1797-3593 --data ersde_lit.data.Digits --features classifier --out results

writes `results.html`, one page to read, keep or send: tables, plots over NFE, pictures of the same seeds from every
sampler, and everything that changes the numbers. Beside it lie `results.md`, `results.csv` (a row a cell), a plot a
metric (`fid.png`), the pictures (`pictures/`), and `cells.jsonl`, from which the command goes on.

Several sets of seeds give mean and standard deviation, or with `--best` the best, as EDM reports. The row of real,
held-out images is of as many as the samples, or says of how many: FID is the higher, the fewer images it is of.
`--grids edm,log_uniform` crosses solvers with grids.
In YAML (`--config`) `samplers` are options of `sample` or any `Sampler` by class_path, those of diffusers and
k-diffusion too (`ersde_lit.interop`). The same command resumes in mid-cell after a kill; `--devices 4` shares the work.
A cell with a sample that is not finite is `nan`, and the others go on.
"""
