"""Limits on the sizes in a slide file. Beyond, a file is refused.

Real slides reach 250,000 px a side in tiles of 4,096 px at most.
"""

SIDE_PX = 500_000
TILE_PX = 2**26  # pixels of a stored tile: it is decoded whole
STRIP_PX = 2**28  # of a strip, likewise: some flat images are one
OVERVIEW_PX = 2**30  # of a whole slide read at once
DIRECTORIES = 10_000  # of a TIFF: a directory is an image
TAGS = 4096  # of a directory
