"""What a section tells, and how large it measures. Needs nothing but Python."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, or one failure."""

    section: str
    name: str
    value: float | None = None
    unit: str = ""
    note: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes: a GPU's, or tiny ones with which the same code runs on a CPU."""

    cpu: bool

    @property
    def device(self) -> str:
        return "cpu" if self.cpu else "cuda"

    @property
    def precision(self) -> str:
        return "bf16" if self.cpu else "fp16"

    @property
    def matrix(self) -> int:
        """Side of the matrices that show the peak."""
        return 256 if self.cpu else 8192

    @property
    def image(self) -> int:
        """Side of the images."""
        return 32 if self.cpu else 224

    @property
    def image_batches(self) -> tuple[int, ...]:
        return (1, 2) if self.cpu else (1, 2, 4, 8, 16, 32, 64, 128, 256)

    @property
    def text_batches(self) -> tuple[int, ...]:
        return (1, 2) if self.cpu else (1, 8, 32)

    @property
    def text_length(self) -> int:
        return 16 if self.cpu else 384

    @property
    def measure_s(self) -> float:
        """Time of one measurement."""
        return 0.02 if self.cpu else 0.7
