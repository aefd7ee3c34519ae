import lightning.pytorch as pl
import pytest
from tiny import Noise, network, trainer

from ersde_lit.training import EMA, AdamWConfig, DiffusionModule


@pytest.fixture
def fitted(tmp_path):
    pl.seed_everything(0, verbose=False)
    module = DiffusionModule(network(), optimizer=AdamWConfig(lr=1e-2), ema=EMA(half_life=20, ramp_up=0))
    runner = trainer(tmp_path)
    runner.fit(module, datamodule=Noise())
    return module, runner
