"""A/B updates: RAUC over D-Bus, the trial of a new slot, mark good or fall back."""
