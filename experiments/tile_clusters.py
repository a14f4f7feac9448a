"""Clusters of tiles in a folder, and the part of an experiment each may serve."""

import hashlib

INDEX = "index.csv"
COLUMNS = ("file", "class", "cluster")
PARTS = ("train", "train", "test", "encoder")


def split_of(cluster: str) -> str:
    """The part a cluster of source tiles belongs to, for ever.

    Tiles of one cluster share their origin (one photographed field, or one seed
    of the texture generator). `sha256("split:" + cluster)` mod 4 sends a cluster
    to slides of training and validation (0, 1), to test slides (2), or to the
    pre-training of encoders only (3), so that no cohort ever mixes them.

    Args:
        cluster: the cluster's name, e.g. "colon_n:158".

    Returns:
        "train", "test" or "encoder".
    """
    digest = hashlib.sha256(f"split:{cluster}".encode()).digest()
    return PARTS[int.from_bytes(digest, "big") % 4]
