"""From signals to one embedding per location."""
