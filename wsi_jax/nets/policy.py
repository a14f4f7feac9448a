"""The nets of a policy that zooms: one updates rows, one chooses, one expects.

All are functions of single rows, but for the pooling of what the critic sees, so that a
row that stays the same is never computed again (`ops.versions`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wsi_jax.nets.gated import Gated, linear


class Updater(nn.Module):
    """What a row is like once a tile like it was zoomed into: SASHA's TSU.

    [v, z, s] -> 2d -> GELU -> d -> LayerNorm, where v is the tile zoomed into, z what
    was known of it before, and s the row. The first layer is a sum of three, of which
    two are the same for all rows of a step.

    Attributes:
        features: d.
        dtype: of the matmuls.
    """

    features: int
    dtype: DTypeLike | None = None

    def setup(self):
        d = self.features
        parts = [
            linear(3 * d, 2 * d, self.dtype, bias) for bias in (True, False, False)
        ]
        self.first_v, self.first_z, self.first_s = parts
        self.second = linear(2 * d, d, self.dtype)
        self.norm = nn.LayerNorm(epsilon=1e-5)

    def zoomed(
        self, v: Float[Array, "*m d"], z: Float[Array, "*m d"]
    ) -> Float[Array, "*m h"]:
        """What the tile zoomed into adds to the first layer."""
        return self.first_v(v) + self.first_z(z)

    def row(self, s: Float[Array, "*m d"]) -> Float[Array, "*m h"]:
        """What the row adds to the first layer."""
        return self.first_s(s)

    def finish(self, hidden: Float[Array, "*m h"]) -> Float[Array, "*m d"]:
        """The row, at least in float32, from the sum of both."""
        out = self.second(nn.gelu(hidden, approximate=False))
        return self.norm(out.astype(jnp.promote_types(out.dtype, jnp.float32)))

    def __call__(
        self, v: Float[Array, " d"], z: Float[Array, " d"], s: Float[Array, "n d"]
    ) -> Float[Array, "n d"]:
        return self.finish(self.zoomed(v, z)[None] + self.row(s))


class Actor(nn.Module):
    """Logit of zooming into each tile: gated attention on its row.

    Attributes:
        features: d.
        dtype: of the matmuls.
    """

    features: int
    dtype: DTypeLike | None = None

    def setup(self):
        self.gated = Gated(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "*m d"]) -> Float[Array, "*m"]:
        return self.gated(x)[..., 0]


class Critic(nn.Module):
    """What is still to be earned, from rows pooled by an attention of their own.

    What is left to earn depends on how many steps are left: without a clock, the
    released code, the critic cannot know.

    Attributes:
        features: d.
        clock: whether it sees the share of the steps taken and of the tiles visited;
            if not, its value is linear in the pooled row.
        channels: that a row is projected to, with a clock.
        dtype: of the matmuls.
    """

    features: int
    clock: bool = True
    channels: int = 16
    dtype: DTypeLike | None = None

    def setup(self):
        channels = self.channels if self.clock else 1
        self.gated = Gated(self.features, dtype=self.dtype)
        self.project = linear(self.features, channels, self.dtype)
        if self.clock:
            self.hidden = linear(channels + 2, 4 * channels)
            self.out = linear(4 * channels, 1)

    def rows(
        self, x: Float[Array, "*m d"]
    ) -> tuple[Float[Array, "*m 1"], Float[Array, "*m p"]]:
        """Of each row its score in the attention, and what of it is pooled."""
        scores, x = self.gated(x), self.project(x)
        return scores, x.astype(scores.dtype)

    def value(
        self, pooled: Float[Array, "*m p"], clock: Float[Array, "*m 2"]
    ) -> Float[Array, "*m"]:
        """Of states, by their pooled rows and the shares of steps and of tiles."""
        if not self.clock:
            return pooled[..., 0]
        hidden = self.hidden(jnp.concatenate([pooled, clock], -1))
        return self.out(nn.tanh(hidden))[..., 0]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, ""]:
        """Touches every parameter, for `init`."""
        return self.value(self.rows(x)[1].mean(0), jnp.zeros(2))
