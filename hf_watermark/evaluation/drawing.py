"""matplotlib, for every plot of this package: an extra, because no verdict needs it."""

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter
except ImportError as error:
    raise ImportError("plots and reports need matplotlib: pip install 'hf-watermark[plots]'") from error


__all__ = [
    "Figure",
    "FigureCanvasAgg",
    "FigureCanvasSVG",
    "Line2D",
    "LinearSegmentedColormap",
    "NullFormatter",
    "matplotlib",
]
