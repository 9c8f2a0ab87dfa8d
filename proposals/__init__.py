"""What a proposal dataset is: boxes, recipes, selective search, the on-disk format (floor 1: no Ray, no torch)."""
