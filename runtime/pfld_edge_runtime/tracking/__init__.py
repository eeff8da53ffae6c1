"""Face tracking in video: detection in some frames, landmarks in all, stable ids, smoothing."""
