"""What made the feature files that the tests write."""

from wsi_jax.data.features import FeatureMetadata


def metadata(**changes) -> FeatureMetadata:
    fields = {"slide_id": "s", "shape": (1000, 1000), "mpp": 0.5, "target_mpp": 0.5}
    fields |= {"size_px": 64, "overlap_px": 0, "encoder": "none", "config_hash": ""}
    return FeatureMetadata(**fields | {"bad_tiles": 0} | changes)
