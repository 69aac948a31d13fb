"""A comparison as data: the runs that it is made of, and how its tables call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Cell(NamedTuple):
    """One run of a comparison: an arm under a condition, on one set of data, SFT and judges.

    Attributes:
      condition, arm: their keys in the comparison.
      seed: of the set; data, SFT and judges of all arms with this seed are the same.
      words: the arguments with which the experiment's `get_config` gives the config of the run. Its last stage is an
        evaluation, each arm of which is a repetition: the policy trained anew on the same set.
      coefficient: of the divergence, where the arm runs with several; else None.
    """

    condition: str
    arm: str
    seed: int
    words: str
    coefficient: float | None = None

    @property
    def folder(self) -> str:
        """Its folder in that of the comparison."""
        at = "" if self.coefficient is None else f"_{self.coefficient:g}"
        return f"cells/{self.condition}/seed{self.seed}/{self.arm}{at}"

    @property
    def name(self) -> str:
        """How progress calls it."""
        return self.folder.removeprefix("cells/").replace("/", " ")


class Comparison(NamedTuple):
    """The runs that are compared.

    Attributes:
      title: of the page.
      cells: in the order in which they run.
      arms: key -> title, in the order of the tables.
      conditions: key -> what is different there, in words.
      reference: the arm that every other one is compared with.
    """

    title: str
    cells: tuple[Cell, ...]
    arms: Mapping[str, str]
    conditions: Mapping[str, str]
    reference: str

    def of(self, condition: str, arm: str) -> Iterator[Cell]:
        """The cells of an arm under a condition."""
        return (cell for cell in self.cells if (cell.condition, cell.arm) == (condition, arm))
