"""Settings of DiffusionNFT, a baseline of the field (Zheng et al. 2025, arXiv 2509.16117)."""

from pydantic import Field

from pgraft_fast.schema import Batch, Decay, Part, Positive, Settings, Times


class NftSettings(Settings):
    """How the samples of a round are trained on. Defaults are those of the authors' recipe.

    beta: how far the two implicit policies lie from the old one. advantage_clip: limit of |advantage|, at which a
    sample counts for one side alone. kl: weight of the squared distance to the reference's answer.
    timestep_fraction: share of a sample's steps that each pass trains. batch_size: samples an optimiser step, all of
    their steps together; default a round. inner_epochs: passes over a round. After optimiser step i at a round's end
    the old policy keeps min(decay_rate i, decay_limit) of itself.
    """

    beta: Positive = 1.0
    advantage_clip: Positive = 5.0
    kl: Decay = 1e-4
    timestep_fraction: float = Field(default=0.99, gt=0, le=1)
    batch_size: Batch | None = None
    inner_epochs: Times = 1
    decay_rate: Decay = 1e-3
    decay_limit: Part = 0.5

    @property
    def calls_of_a_row(self) -> int:
        """Model calls of a row: forward, backward that counts as two, the old policy, the reference."""
        return 4 + (self.kl > 0)

    def steps_of(self, steps: int) -> int:
        """Steps of a sample that a pass trains, of so many."""
        return max(1, int(self.timestep_fraction * steps))

    def most_rows(self, samples: int, steps: int) -> int:
        """Pairs of sample and step that a round trains."""
        return samples * self.steps_of(steps) * self.inner_epochs
