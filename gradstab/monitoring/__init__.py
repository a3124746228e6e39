"""The run record: what a run leaves on disk, written as it goes, and read without Keras."""

from gradstab.monitoring.record import Event, PerVariable, Record, read_record
from gradstab.monitoring.writer import RecordWriter

__all__ = ["Event", "PerVariable", "Record", "RecordWriter", "read_record"]
