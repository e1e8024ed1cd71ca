"""Parts of an estimate: phases and their components."""

from msgspec import Struct


class Component(Struct, frozen=True):
    """One use of memory, in bytes."""

    name: str
    bytes: int


class PhaseEstimate(Struct, frozen=True):
    """Peak of one phase of a stage, with everything on the device at that moment."""

    name: str
    components: tuple[Component, ...]

    @property
    def bytes(self) -> int:
        """Sum of the components."""
        return sum(component.bytes for component in self.components)


def phase(name: str, **parts: int) -> PhaseEstimate:
    """Make a phase of the non-empty components; ``kv_cache`` becomes ``kv cache``."""
    components = [Component(part.replace("_", " "), count) for part, count in parts.items() if count]
    return PhaseEstimate(name, tuple(components))
