from .engine.custom_generate import speculate as speculate
from .engine.engine import Engine as Engine
from .engine.generation import generate as generate
from .engine.generation import stream as stream
from .engine.sampling.logits_sampler import SamplingParams as SamplingParams
from .engine.sampling.request import Request as Request
from .engine.sampling.result import GenerationResult as GenerationResult
from .errors import TruedepthError as TruedepthError
from .models.loading.load import LoadedModel as LoadedModel
from .models.loading.load import load as load
from .models.rewire import applied_plan as applied_plan
from .models.rewire import apply as apply
from .models.rewire import restore as restore
from .plan.depth_plan import DepthPlan as DepthPlan
from .plan.depth_plan import Stage as Stage

__version__: str
