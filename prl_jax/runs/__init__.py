"""What a run is made of: its folder, its stages' surroundings, progress, stopping and continuing."""
