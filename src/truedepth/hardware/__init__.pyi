from .prediction import predict as predict
from .profile import load_hardware as load_hardware
from .profiling import measure_profile as measure_profile
