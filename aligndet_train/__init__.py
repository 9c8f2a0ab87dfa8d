"""Box-domain pretraining of mmdet detectors on mined proposals (floor 2: no Ray)."""
