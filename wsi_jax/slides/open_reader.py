"""Chooses the reader of a file: the first of `READERS` that can open it."""

from wsi_jax.slides.file_checks import check_file
from wsi_jax.slides.file_faults import is_transient
from wsi_jax.slides.flat_reader import FlatReader
from wsi_jax.slides.openslide_reader import OpenSlideReader
from wsi_jax.slides.reader_protocol import Reader, SlideError, is_url
from wsi_jax.slides.tiff_reader import TiffReader

# OpenSlide reads SVS, NDPI, MRXS, DICOM, tiled TIFF, ...; tifffile the TIFFs it does
# not (strips, odd compressions); Pillow flat images.
READERS = (OpenSlideReader, TiffReader, FlatReader)


def open_reader(path: str) -> Reader:
    """Opens a file, or a URL, with the first reader that can.

    SlideError: none can; the message has each one's reason.
    """
    reasons = []
    try:
        if not is_url(path):
            check_file(path)
    except Exception as error:  # whatever junk may raise
        if is_transient(error):
            raise
        reasons.append(str(error))
    for reader in READERS if not reasons else ():
        try:
            return reader(path)
        except Exception as error:  # decoders raise whatever they like on junk
            if is_transient(error):
                raise  # and not read otherwise, by another
            reasons.append(f"{reader.__name__}: {error}")
    raise SlideError(
        f"{path} cannot be opened as a slide; copy it again if it is damaged, else "
        f"convert it to a tiled 8-bit RGB TIFF ({'; '.join(reasons)})"
    )
