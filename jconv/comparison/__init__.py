"""compare: the hand-written and the automatic form of a function, side by side, and all that shows the result."""

from jconv.comparison.result import Comparison, Difference
from jconv.comparison.side_by_side import compare

__all__ = ["Comparison", "Difference", "compare"]
