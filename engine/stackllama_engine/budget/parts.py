"""What an estimate is made of."""

from msgspec import Struct


class Component(Struct, frozen=True):
    """One reason for memory, in bytes."""

    name: str
    bytes: int


class PhaseEstimate(Struct, frozen=True):
    """One moment of a stage, and everything that is on the device then."""

    name: str
    components: tuple[Component, ...]

    @property
    def bytes(self) -> int:
        """Sum of the components."""
        return sum(component.bytes for component in self.components)


def phase(name: str, **parts: int) -> PhaseEstimate:
    """A phase of the components that are not empty; ``kv_cache`` becomes ``kv cache``."""
    kept = [Component(part.replace("_", " "), count) for part, count in parts.items() if count]
    return PhaseEstimate(name, tuple(kept))
