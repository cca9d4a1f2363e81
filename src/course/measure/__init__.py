"""How good it is: PSNR, sharpness, overlap of edges and of maps, Frechet distance, precision and recall, the judge's
verdicts, speed, the results table, and the stored tables of long experiments.

The functions are imported here and now rather than on first use: a function and its file share a name, and a
late import of the file would put the module in the function's place.  Heavy packages wait inside the
functions.
"""

from course.measure import results, tables
from course.measure.edges import edge_agreement, seam, sharpness
from course.measure.expect import expect
from course.measure.frechet import floor, frechet, precision_recall
from course.measure.iou import iou
from course.measure.judge import agreement, by_place, read
from course.measure.psnr import psnr
from course.measure.speed import milliseconds_per_image

__all__ = [
    "agreement",
    "by_place",
    "edge_agreement",
    "expect",
    "floor",
    "frechet",
    "iou",
    "milliseconds_per_image",
    "precision_recall",
    "psnr",
    "read",
    "results",
    "seam",
    "sharpness",
    "tables",
]
