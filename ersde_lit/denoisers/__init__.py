"""From raw networks to E[x0 | y]: noising processes, preconditioning, prediction types and their losses."""

from ersde_lit.denoisers.denoiser import Denoiser
from ersde_lit.denoisers.density import LogNormal, LogUniform, NoiseDensity, UniformTime
from ersde_lit.denoisers.processes import VE, VP, Flow, Process

__all__ = ["VE", "VP", "Denoiser", "Flow", "LogNormal", "LogUniform", "NoiseDensity", "Process", "UniformTime"]
