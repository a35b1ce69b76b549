"""Visualization: class colours, overlays, panels of image, ground truth and prediction, curves, per-class bars.

The only package that imports matplotlib, and it does so only when a plot is drawn.
"""

from san.visualize.attention import AttentionView, attention_panel
from san.visualize.legend import legend
from san.visualize.overlay import error_map, overlay, segment_overlay
from san.visualize.palette import class_color, palette
from san.visualize.panel import Sample, contact_sheet, panel, panels
from san.visualize.plots import drawing, plot_curves, plot_per_class, plot_pixel_histogram
from san.visualize.text import annotate

__all__ = [
    "AttentionView",
    "Sample",
    "annotate",
    "attention_panel",
    "class_color",
    "contact_sheet",
    "drawing",
    "error_map",
    "legend",
    "overlay",
    "palette",
    "panel",
    "panels",
    "plot_curves",
    "plot_per_class",
    "plot_pixel_histogram",
    "segment_overlay",
]
