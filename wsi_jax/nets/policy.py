"""SASHA's policy nets: an updater of rows, an actor and a critic.

All but the pooling of the critic's input treats rows one by one (`ops.episode_states`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wsi_jax.nets.attention import GatedAttention, torch_linear


class Updater(nn.Module):
    """Estimates a row after a zoom into a similar tile: SASHA's targeted state updater.

    [v, z, s] -> 2d -> GELU -> d -> LayerNorm, where v is the tile zoomed into, z its
    row before, and s the row to update.
    """

    features: int
    dtype: DTypeLike | None = None

    def setup(self):
        d = self.features
        parts = [
            torch_linear(3 * d, 2 * d, self.dtype, bias)
            for bias in (True, False, False)
        ]
        self.first_v, self.first_z, self.first_s = parts
        self.second = torch_linear(2 * d, d, self.dtype)
        self.norm = nn.LayerNorm(epsilon=1e-5)

    def zoom_terms(
        self, v: Float[Array, "*m d"], z: Float[Array, "*m d"]
    ) -> Float[Array, "*m h"]:
        """First-layer terms of the tile zoomed into."""
        return self.first_v(v) + self.first_z(z)

    def row_terms(self, s: Float[Array, "*m d"]) -> Float[Array, "*m h"]:
        """First-layer terms of the row to update."""
        return self.first_s(s)

    def output_layers(self, hidden: Float[Array, "*m h"]) -> Float[Array, "*m d"]:
        """Updated row, at least in float32, from the sum of both terms."""
        out = self.second(nn.gelu(hidden, approximate=False))
        return self.norm(out.astype(jnp.promote_types(out.dtype, jnp.float32)))

    def __call__(
        self, v: Float[Array, " d"], z: Float[Array, " d"], s: Float[Array, "n d"]
    ) -> Float[Array, "n d"]:
        return self.output_layers(self.zoom_terms(v, z)[None] + self.row_terms(s))


class Actor(nn.Module):
    """Logit of zooming into each tile, by a gated attention on its row."""

    features: int
    dtype: DTypeLike | None = None

    def setup(self):
        self.gated = GatedAttention(width=128, dtype=self.dtype, torch_init=True)

    def __call__(self, x: Float[Array, "*m d"]) -> Float[Array, "*m"]:
        return self.gated(x)[..., 0]


class Critic(nn.Module):
    """Expected return of a state, from rows pooled by an attention of their own.

    Attributes:
        clock: whether the critic gets the shares of steps taken and of tiles visited;
            if not, its value is linear in the pooled row.
        channels: width that a row is projected to, with a clock.
    """

    features: int
    clock: bool = True
    channels: int = 16
    dtype: DTypeLike | None = None

    def setup(self):
        channels = self.channels if self.clock else 1
        self.gated = GatedAttention(width=128, dtype=self.dtype, torch_init=True)
        self.project = torch_linear(self.features, channels, self.dtype)
        if self.clock:
            self.hidden = torch_linear(channels + 2, 4 * channels)
            self.out = torch_linear(4 * channels, 1)

    def project_rows(
        self, x: Float[Array, "*m d"]
    ) -> tuple[Float[Array, "*m 1"], Float[Array, "*m p"]]:
        """Attention score of each row, and its projection, which is pooled."""
        scores, x = self.gated(x), self.project(x)
        return scores, x.astype(scores.dtype)

    def value(
        self, pooled: Float[Array, "*m p"], clock: Float[Array, "*m 2"]
    ) -> Float[Array, "*m"]:
        """Value of states, from pooled rows and the shares of steps and of tiles."""
        if not self.clock:
            return pooled[..., 0]
        hidden = self.hidden(jnp.concatenate([pooled, clock], -1))
        return self.out(nn.tanh(hidden))[..., 0]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, ""]:
        """Value by the mean row at step 0; creates every parameter, for `init`."""
        return self.value(self.project_rows(x)[1].mean(0), jnp.zeros(2))
