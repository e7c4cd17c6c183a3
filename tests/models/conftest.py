import pytest


@pytest.fixture(params=[1, 2, 3], ids=lambda r: f"r={r}")
def r(request):
    """Frames per step."""
    return request.param
