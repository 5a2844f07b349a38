"""Numbers for JSON."""
import math


def finite_or_none(value: float) -> float | None:
    """The value as a plain float, None if it is NaN or infinite, which JSON cannot express."""
    return float(value) if math.isfinite(value) else None
