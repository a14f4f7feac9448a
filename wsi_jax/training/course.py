"""How long one stage of several is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from wsi_jax.config_io import COUNT
from wsi_jax.training.loop import check_updates
from wsi_jax.training.optimiser import Optimiser


@dataclasses.dataclass(kw_only=True)
class Course:
    """How long one of the stages is trained; the rest is as in `--config.train`.

    Attributes:
        steps: batches.
        batch: slides in a batch.
        validate_every: steps between two looks at the validation slides.
        optimiser: AdamW and its schedule.
    """

    steps: int = 2000
    batch: int = 4
    validate_every: int = 100
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("steps", "batch", "validate_every"), COUNT
    )

    def validate(self) -> None:
        """As `Train.validate`."""
        check_updates(self.steps, self.optimiser)

    def plan(self, **others: Any) -> dict[str, Any]:
        """Fields of `Train` that are the stage's own."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return mine | others
