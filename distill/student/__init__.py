"""The student: networks, model, sampling and export."""
