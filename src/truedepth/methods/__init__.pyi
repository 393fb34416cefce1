from .base import EvidenceMethod as EvidenceMethod
from .base import LayerMethod as LayerMethod
from .registry import all_methods as all_methods
from .registry import build_method as build_method
from .registry import get_method as get_method
from .shapley import Shapley as Shapley
