import pytest

from examples.engine import distributed


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu():
    """What is compared to the last bit, or with tensors of the test's own, is computed on the CPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "default_device", lambda: "cpu")
        yield
