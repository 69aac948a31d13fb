"""The parts of a run: its folder, its stages' surroundings, progress, stopping and continuing."""
