"""Weights of ABMIL and CLAM under the names of CLAM's own model, in safetensors."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from wsi_jax.files import replacing


def clam_tensors(
    params: Mapping[str, Any], log_prior: Sequence[float] = ()
) -> dict[str, np.ndarray]:
    """Parameters of an `AttentionHead` as the state of CLAM_SB, or of CLAM_MB.

    Args:
        params: its `params`; without `Standardise`, which CLAM has not.
        log_prior: correction added to each class's logit, () for none; it goes into
            the biases.

    Raises:
        ValueError: features are standardised.
    """
    if "standardise" in params["embedding"]:
        raise ValueError("CLAM has no standardised features; train without them")
    gated, bias = params["gated"], np.asarray(params["bias"])
    if log_prior:
        bias = bias + np.asarray(log_prior, bias.dtype)
    layers = {
        "attention_net.0": params["embedding"]["fc"],
        "attention_net.3.attention_a.0": gated["value"],
        "attention_net.3.attention_b.0": gated["gate"],
        "attention_net.3.attention_c": gated["logits"],
    }
    tensors = {
        f"{name}.{leaf}": np.asarray(value).T
        for name, layer in layers.items()
        for leaf, value in (("weight", layer["kernel"]), ("bias", layer["bias"]))
    }
    kernel = np.asarray(params["kernel"])
    if gated["logits"]["kernel"].shape[-1] == 1:
        tensors |= {"classifiers.weight": kernel, "classifiers.bias": bias}
    for c in range(len(kernel)):
        if "classifiers.weight" not in tensors:
            tensors[f"classifiers.{c}.weight"] = kernel[c : c + 1]
            tensors[f"classifiers.{c}.bias"] = bias[c : c + 1]
        own = f"instance_classifiers.{c}"
        tensors[f"{own}.weight"] = np.asarray(params["instance_kernel"][c]).T
        tensors[f"{own}.bias"] = np.asarray(params["instance_bias"][c])
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def save_clam(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    log_prior: Sequence[float] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `clam_tensors` to a `.safetensors` file, whole or not at all."""
    tensors = clam_tensors(params, log_prior)
    with replacing(path) as temporary:
        save_file(tensors, temporary, dict(metadata or {}))
