"""Random faults on running trainings, and what must be the same afterwards."""
