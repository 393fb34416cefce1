from .lossless import optimize_lossless as optimize_lossless
from .lossless_results import LosslessResults as LosslessResults
from .optimize import optimize as optimize
from .recipe import LosslessRecipe as LosslessRecipe
from .recipe import Recipe as Recipe
from .results import Results as Results
