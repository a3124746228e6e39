"""The run record, a file of JSON lines: written during the run, and read without Keras."""

from gradstab.monitoring.entries import Epoch, Event, PerVariable, Totals
from gradstab.monitoring.record import Record, read_record
from gradstab.monitoring.writer import RecordWriter

__all__ = [
    "Epoch",
    "Event",
    "PerVariable",
    "Record",
    "RecordWriter",
    "Totals",
    "read_record",
]
