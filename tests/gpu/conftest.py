import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def needs_a_device():
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device can be used")
