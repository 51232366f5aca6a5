"""What a rewriting did to a function: each replacement and each operation left as it was, with its source line."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class Note:
    """One operation of the function. `became` names what computes it now; where it was left, `reason` says why."""

    operation: str
    became: str | None
    reason: str
    place: str  # file:line of the user's code


@dataclasses.dataclass(frozen=True)
class Report:
    """Every operation that a rewriting's table names, in program order; str() is a table."""

    notes: tuple[Note, ...]

    @property
    def replaced(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.became is not None)

    @property
    def left(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.became is None)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.left)} left as they were"]
        for note, count in collections.Counter(self.notes).items():
            fate = f"-> {note.became}" if note.became is not None else "left"
            reason = f" ({note.reason})" if note.reason else ""
            lines.append(f"{count:4} x {note.operation} {fate}{reason}\n         {note.place}")
        return "\n".join(lines)
