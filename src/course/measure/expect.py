"""A measured number beside the range it must lie in: what notebooks print and tests compare."""

from __future__ import annotations

from course import UserError


class Unechoed(float):
    """A float that a notebook does not show at the end of a cell, for its digits differ from run to run."""

    def _ipython_display_(self) -> None:
        pass


def expect(name: str, value: float, low: float | None, high: float | None, unit: str = "") -> float:
    """Print the range that a measured value must lie in, and stop if it does not.

    The printed line is the same for every value inside (``PSNR of the autoencoder: within 21.5 .. 23.5 dB``),
    so a stored notebook agrees with a new run while the model is sound, and the assertion fails when it is
    not.

    name: what was measured. value: a number or a tensor of one element. low, high: bounds, themselves
    allowed; None leaves that side open. unit: printed after the range.
    Returns the value as a float (not echoed by notebooks).
    Raises AssertionError, with the value, when it is outside or NaN; UserError when the bounds make no range.
    """
    if low is None and high is None:
        raise UserError(f"expect {name!r}: give low, high or both")
    if low is not None and high is not None and not low <= high:
        raise UserError(f"expect {name!r}: low {low:g} is above high {high:g}")
    value = float(value)
    unit = f" {unit}" if unit else ""
    if low is None:
        span = f"at most {high:g}{unit}"
    elif high is None:
        span = f"at least {low:g}{unit}"
    else:
        span = f"within {low:g} .. {high:g}{unit}"
    # written so that NaN, which compares false with everything, fails
    inside = (low is None or value >= low) and (high is None or value <= high) and value == value
    if not inside:
        raise AssertionError(f"{name}: {value:.6g}{unit}, expected {span}")
    print(f"{name}: {span}")
    return Unechoed(value)
