"""Analysis of solver errors per step: exact on Gaussian data, measured on a mixture or a network.

    python -m ersde_lit analyze --solvers er_sde,dpm++2m --noise_scales ode,er_sde_5,sde --nfe 10 --out analysis

draws and tabulates along the noise axis: the paper's Euler (FEI) coefficient, the injected noise, kappa, what an error
of the denoiser leaves in the image, and each solver's error, of one step alone and of the run so far. The ODE's steps
err least, which decides at few calls; noise removes what the network did wrong at high noise levels, which decides at
many (`tools/results/analysis_fashion_mnist.png`).
"""
