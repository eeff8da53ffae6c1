"""Face detection: the detector interface, published detectors, and their files."""
