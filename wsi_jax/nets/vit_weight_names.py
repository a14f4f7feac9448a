"""Names of a vision transformer's parameters in files other than timm's."""

# (part of a name, timm's part of the name, position in timm's tensor where that packs
# several); applied in this order.
_THEIRS = (
    # DINOv2's and DINOv3's own.
    ("register_tokens", "reg_token", 0),
    ("storage_tokens", "reg_token", 0),
    ("mlp.w12.", "mlp.fc1.", 0),
    ("mlp.w1.", "mlp.fc1.", 0),
    ("mlp.w2.", "mlp.fc1.", 1),
    ("mlp.w3.", "mlp.fc2.", 0),
    # DINOv3's in timm, where they are of another class than its ViT.
    ("gamma_1", "ls1.gamma", 0),
    ("gamma_2", "ls2.gamma", 0),
    ("mlp.fc1_g.", "mlp.fc1.", 0),
    ("mlp.fc1_x.", "mlp.fc1.", 1),
    # `ViTModel` and `Dinov2Model` of Hugging Face's transformers.
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj.", 0),
    ("embeddings.position_embeddings", "pos_embed", 0),
    ("embeddings.", "", 0),
    ("encoder.layer.", "blocks.", 0),
    ("attention.attention.query.", "attn.qkv.", 0),
    ("attention.attention.key.", "attn.qkv.", 1),
    ("attention.attention.value.", "attn.qkv.", 2),
    ("attention.output.dense.", "attn.proj.", 0),
    ("intermediate.dense.", "mlp.fc1.", 0),
    ("output.dense.", "mlp.fc2.", 0),
    ("mlp.weights_in.", "mlp.fc1.", 0),
    ("mlp.weights_out.", "mlp.fc2.", 0),
    ("layernorm_before.", "norm1.", 0),
    ("layernorm_after.", "norm2.", 0),
    ("layernorm.", "norm.", 0),
    ("layer_scale1.lambda1", "ls1.gamma", 0),
    ("layer_scale2.lambda1", "ls2.gamma", 0),
)


def rename(name: str) -> tuple[str, int]:
    """timm's name and the position in its tensor, for `pretrained.load`."""
    which = 0
    for theirs, ours, part in _THEIRS:
        if theirs in name:
            name, which = name.replace(theirs, ours), part or which
    return name, which
