from .loading.load import load_shapes as load_shapes
from .rewire import mark_decoding as mark_decoding
