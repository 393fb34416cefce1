from .measurement import measure as measure
from .speed import compare as compare
