"""What all rooms speak of: models, accelerators, sites, units, counts of FLOPs and bytes. Never imports torch."""
