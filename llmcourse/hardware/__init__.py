"""What a machine can do: the ground that every limit stands on.

machine      the machine at hand: its name, cores, memory, the bandwidth of a copy
datasheets   what makers promise: memory, bandwidth, peaks
dtypes       formats of numbers by their short names
"""

from llmcourse.hardware.datasheets import DATASHEETS, Datasheet, datasheet
from llmcourse.hardware.dtypes import BITS, dtype_name
from llmcourse.hardware.machine import (
    Machine,
    available_cores,
    copy_bandwidth,
    default_device,
    fingerprint,
    this_machine,
)

__all__ = [
    "BITS",
    "DATASHEETS",
    "Datasheet",
    "Machine",
    "available_cores",
    "copy_bandwidth",
    "datasheet",
    "default_device",
    "dtype_name",
    "fingerprint",
    "this_machine",
]
