"""What a machine can do: the ground that every limit stands on.

machine      the machine at hand: its name, cores, memory, the speed of a copy
datasheets   what makers promise: memory, bandwidth, peaks
dtypes       formats of numbers by their short names
"""

from llmcourse.hardware.ceilings import Ceilings, cache_folder, measure_ceilings, stored_ceilings
from llmcourse.hardware.datasheets import DATASHEETS, Datasheet, datasheet
from llmcourse.hardware.dtypes import BITS, dtype_name
from llmcourse.hardware.machine import (
    Machine,
    available_cores,
    copy_bandwidth,
    default_device,
    fingerprint,
    free_bytes,
    gpu_obstacle,
    present_device,
    this_machine,
)

__all__ = [
    "BITS",
    "DATASHEETS",
    "Ceilings",
    "Datasheet",
    "Machine",
    "available_cores",
    "cache_folder",
    "copy_bandwidth",
    "datasheet",
    "default_device",
    "dtype_name",
    "fingerprint",
    "free_bytes",
    "gpu_obstacle",
    "measure_ceilings",
    "present_device",
    "stored_ceilings",
    "this_machine",
]
