import pytest
from slides.tiffs import halved, picture, write_tiff

from wsi_jax.slides import reader_pool, strict_jpeg


@pytest.fixture(autouse=True)
def no_open_slides():
    reader_pool.close_all()  # those of tests elsewhere, in the same process
    yield
    reader_pool.close_all()


@pytest.fixture(scope="session")
def levels():
    """Three levels whose sizes OpenSlide takes for downsamples of 2.003 and 4.02."""
    first = picture(451, 603)
    return first, halved(first), halved(halved(first))


@pytest.fixture(scope="session")
def pyramid(tmp_path_factory, levels):
    return write_tiff(tmp_path_factory.mktemp("slides") / "pyramid.tif", levels)


@pytest.fixture
def decodes(monkeypatch):
    """Counts the tiles that are decoded straight from the file."""
    calls, decode = [], strict_jpeg.decode
    count = lambda *args: calls.append(args) or decode(*args)
    monkeypatch.setattr(strict_jpeg, "decode", count)
    return calls
