import os
from pathlib import Path

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


# What torch 2.4 cannot do, and docs/options.md says: its compiler does not trace a FeatureTap, and its graph keeps no
# shapes of stacked outputs.
NOT_ON_TORCH_2_4 = {
    "test_compiled_in_one_graph", "test_compiled_with_batch_norm", "test_one_of_several_outputs_in_one_tensor",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent != item.path.parent:  # tests of what uses the library run a third longer with it
            item.add_marker("no_cover")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5):
        for item in items:
            if getattr(item, "originalname", item.name) in NOT_ON_TORCH_2_4:
                item.add_marker(pytest.mark.skip(reason="torch 2.4 cannot do it"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _arithmetic():
    yield
    torch.set_flush_denormal(False)  # the commands set it for their process
