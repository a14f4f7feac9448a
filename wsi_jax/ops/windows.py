"""Windows of convolutions and poolings, and the receptive fields that they make."""

from typing import Any, NamedTuple


class Window(NamedTuple):
    """Window of a convolution or a pooling along one axis.

    Attributes:
        padding: positions added on either side.
        ceil: whether a last window that is only partly in the map counts.
    """

    size: int
    stride: int
    padding: int
    ceil: bool = False


class ReceptiveField(NamedTuple):
    """Receptive field of the positions of a map, along one axis, in image pixels.

    Attributes:
        stride: distance between positions: that of index i is around pixel i * stride.
        before: pixels of the field before that pixel.
        after: pixels of the field after that pixel.
    """

    stride: int
    before: int
    after: int

    @property
    def size(self) -> int:
        """Size of the receptive field, in pixels."""
        return self.before + self.after + 1


def receptive_field(windows: tuple[Window, ...]) -> ReceptiveField:
    """Receptive field of a map behind some windows, the first nearest to the image."""
    step, before, after = 1, 0, 0
    for k, s, p, _ in windows:
        before, after = before + p * step, after + (k - 1 - p) * step
        step *= s
    return ReceptiveField(step, before, after)


def map_length(n: Any, windows: tuple[Window, ...]) -> Any:
    """Positions of a map behind some windows, of an image of n px; n may be traced."""
    for k, s, p, ceil in windows:
        n = (n + 2 * p - k + (s - 1) * ceil) // s + 1
    return n
