"""Pictures: class colours, overlays, panels of image, truth and prediction, training curves, per-class bars.

The only part of the package that imports matplotlib, and only once a picture is drawn.
"""

from san.visualize.palette import class_color, palette
from san.visualize.panel import Sample, legend, overlay, panel, panels
from san.visualize.plots import plot_curves, plot_per_class

__all__ = [
    "Sample",
    "class_color",
    "legend",
    "overlay",
    "palette",
    "panel",
    "panels",
    "plot_curves",
    "plot_per_class",
]
