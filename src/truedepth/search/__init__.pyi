from .draft_job import optimize_lossless as optimize_lossless
from .draft_results import LosslessResults as LosslessResults
from .plan_job import optimize as optimize
from .plan_results import Results as Results
from .recipe import LosslessRecipe as LosslessRecipe
from .recipe import Recipe as Recipe
