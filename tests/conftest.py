import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadlines: a loaded machine must not fail a law.
settings.register_profile(
    "rpg_loss", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("rpg_loss")

# Before anything imports Triton: its kernels run in Python where there is no GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The tensors of the tests are tiny: threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _arithmetic():
    yield
    torch.set_flush_denormal(False)  # the commands set it for their process
