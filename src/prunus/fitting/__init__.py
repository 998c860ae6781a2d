"""Training without a loop of the caller's: :func:`fit`, and the step that recipes share with it."""

from prunus.fitting.fit import FitEpoch, FitResult, fit

__all__ = ["FitEpoch", "FitResult", "fit"]
