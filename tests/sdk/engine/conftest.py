import pytest
import torch

from stackloom.testing import tiny_tokenizer

from .tiny_models import build


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama():
    return build()


@pytest.fixture(scope="session")
def long_llama():
    return build(max_position_embeddings=512)


@pytest.fixture(scope="module", autouse=True)
def threads(request):
    """One thread: on models this small a second one only waits. A module asks for more with THREADS."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request.module, "THREADS", 1))
    yield
    torch.set_num_threads(before)
