from .gguf.export import export_gguf as export_gguf
from .hf.export import export_hf as export_hf
